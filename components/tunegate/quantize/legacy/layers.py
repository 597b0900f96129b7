"""Which layers AutoAWQ and AutoGPTQ quantize: every linear one inside the decoder's layers, and no other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tunegate.contracts.errors import SettingsError
from tunegate.tensors.shards import model_specs

_NUMBERED = re.compile(r"\.\d+\.")


def check_all_inner_layers(backend: str, source: Path, layers: Sequence[str]) -> None:
    """Refuses ``ignore`` where it leaves out what the backend would quantize, or keeps what it would not.

    Raises:
        SettingsError: naming the layers.
    """
    matrices = [name for name, spec in model_specs(source).items() if len(spec.shape) == 2]
    inner = {name.removesuffix(".weight") for name in matrices if _NUMBERED.search(name)}
    left_out, outer = sorted(inner - set(layers)), sorted(set(layers) - inner)
    if left_out or outer:
        raise SettingsError(
            f"{backend} quantizes the linear layers inside the decoder's layers, all of them and no other.",
            seen=f"quantize.ignore leaves {len(left_out)} of these out, and {len(outer)} outside them in",
            expected="quantize.ignore with the output layer alone, which is lm_head in most models",
            remedy="set quantize.ignore to ['lm_head'], or use backend llmcompressor",
            items=[f"{name} left out" for name in left_out] + [f"{name} is outside" for name in outer],
        )
