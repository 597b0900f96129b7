"""AutoAWQ as the backend: AWQ with zero points, in AutoAWQ's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import AUTOAWQ
from tunegate.quantize.legacy.environment import DISTRIBUTIONS, find_python
from tunegate.quantize.legacy.layers import check_all_inner_layers
from tunegate.quantize.legacy.process import run_worker
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.work import Work
from tunegate.tensors.shards import model_specs

#: AutoAWQ clips so many outputs at a time (awq/quantize/quantizer.py, ``_compute_best_clip``).
_OUTPUTS = 64


def check(settings: QuantizeSettings, source: Path, layers: Sequence[str]) -> None:
    """Refuses what AutoAWQ cannot do, before anything is loaded.

    Raises:
        SettingsError: when its environment is absent, a layer is left out that it would quantize, or one has outputs
            that it cannot divide.
    """
    find_python(DISTRIBUTIONS[AUTOAWQ], given=settings.legacy_python)
    check_all_inner_layers(settings.backend, source, layers)
    shapes = {name: model_specs(source)[f"{name}.weight"].shape for name in layers}
    if unfit := [f"{name} (outputs {shape[0]})" for name, shape in shapes.items() if shape[0] % _OUTPUTS]:
        raise SettingsError(
            f"AutoAWQ takes {_OUTPUTS} outputs of a layer at a time.",
            seen=f"{len(unfit)} of {len(layers)} layers have another number of outputs",
            expected=f"outputs % {_OUTPUTS} == 0 in every layer",
            remedy="use backend llmcompressor with algorithm awq",
            items=unfit,
        )


def quantize(work: Work) -> None:
    """Quantizes in AutoAWQ's environment."""
    run_worker(work, find_python(DISTRIBUTIONS[AUTOAWQ], given=work.settings.legacy_python))
