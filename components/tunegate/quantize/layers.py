"""Which layers will be quantized, read from config.json and the headers of the weights: nothing is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, SettingsError
from tunegate.models.files import check_model_folder

#: Weight types of a model that is not quantized, in safetensors' names.
PLAIN_DTYPES = ("F32", "F16", "BF16")


def check_unquantized(folder: Path) -> None:
    """Refuses a model that is quantized already.

    Raises:
        ModelError: naming what gives it away.
    """
    config = check_model_folder(folder)
    coded = sorted({dtype for _, dtype, _ in tensor_headers(folder).values() if dtype not in PLAIN_DTYPES})
    if "quantization_config" in config or coded:
        method = config.get("quantization_config", {}).get("quant_method", "unknown")
        raise ModelError(
            f"{folder} is quantized already.",
            seen=f"quantization_config of {method!r}"
            if "quantization_config" in config
            else f"weights of {', '.join(coded)}",
            expected="a merged model with 16-bit or 32-bit weights",
            remedy="give the output of merge, not of quantize, and no 4-bit checkpoint",
        )


def tensor_headers(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """Tensor → the file it lies in, its dtype in safetensors' names, and its shape."""
    from safetensors import safe_open

    found: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = (path, part.get_dtype(), tuple(part.get_shape()))
    return found


def linear_widths(folder: Path, *, ignore: Sequence[str]) -> dict[str, int]:
    """Linear layer → its number of inputs, for every layer that ``ignore`` does not name.

    The architecture is built without memory (meta tensors): what counts as a linear layer is what the library says.

    Raises:
        SettingsError: when an entry of ``ignore`` names nothing, or a tied output layer would be quantized.
    """
    import torch
    from compressed_tensors.utils import match_named_modules
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for entry in ignore:
        if not any(match_named_modules(model, [entry])):
            raise _unknown_layer(entry, list(linear))
    chosen = {name: int(module.in_features) for name, module in match_named_modules(model, ["Linear"], list(ignore))}
    _check_targets(model, linear, chosen)
    return chosen


def _unknown_layer(entry: str, names: Sequence[str]) -> SettingsError:
    near = difflib.get_close_matches(entry, names, n=1)
    return SettingsError(
        "quantize.ignore names a layer that the model does not have.",
        seen=repr(entry),
        expected="the name of a layer, a module class, or 're:' and a regular expression that matches one",
        remedy=f"did you mean {near[0]!r}?" if near else "leave it out",
    )


def _check_targets(model: Any, linear: Mapping[str, Any], chosen: Mapping[str, int]) -> None:
    head = next((name for name, module in linear.items() if module is model.get_output_embeddings()), None)
    if head in chosen and model.config.tie_word_embeddings:
        raise SettingsError(
            f"{head} shares its weights with the input embedding and cannot be quantized alone.",
            seen=f"quantize.ignore without {head!r}, in a model with tied embeddings",
            expected="tied embeddings stay tied, or the model grows by a second table",
            remedy=f"add {head!r} to quantize.ignore",
        )
    if not chosen:
        raise SettingsError(
            "There is nothing to quantize.",
            seen=f"{len(linear)} linear layers, all ignored",
            expected="at least one linear layer",
            remedy="shorten quantize.ignore",
        )
