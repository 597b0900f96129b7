"""Which layers will be quantized, read from config.json and the headers of the weights: nothing is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, SettingsError
from tunegate.models.files import check_model_folder
from tunegate.tensors.shards import INDEX_NAME, model_specs, shard_names

#: Weight types of a model that is not quantized, in safetensors' names.
PLAIN_DTYPES = ("F32", "F16", "BF16")


def check_unquantized(folder: Path) -> None:
    """Refuses a model that is quantized already.

    Raises:
        ModelError: naming what gives it away, or weight files that do not belong to it.
    """
    config = check_model_folder(folder)
    _check_no_stray_weights(folder)
    coded = sorted({spec.dtype for spec in model_specs(folder).values()} - set(PLAIN_DTYPES))
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


def _check_no_stray_weights(folder: Path) -> None:
    """Refuses weight files that the model does not name: they would be counted as its own, or loaded in its place."""
    stray = sorted({path.name for path in folder.glob("*.safetensors")} - set(shard_names(folder)))
    if stray:
        raise ModelError(
            f"{folder} has weight files that its index does not name.",
            seen=f"{len(stray)} file(s)",
            expected=f"only the shards of {INDEX_NAME}",
            remedy="remove the files that do not belong to the model",
            items=stray,
        )


def check_ignore(ignore: Sequence[str]) -> None:
    """Refuses an entry of ``ignore`` that is no regular expression though it says so.

    Raises:
        SettingsError: naming the entry.
    """
    for entry in ignore:
        pattern = entry.removeprefix("re:")
        if pattern == entry:
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingsError(
                "quantize.ignore has a regular expression that cannot be read.",
                seen=f"{entry!r}: {error}",
                expected="'re:' and a Python regular expression, for example 're:.*mlp.*'",
                remedy="correct the expression, or give the layer's name without 're:'",
            ) from error


def linear_widths(folder: Path, *, ignore: Sequence[str]) -> dict[str, int]:
    """Linear layer → its number of inputs, for every layer that ``ignore`` does not name.

    The architecture is built without memory (meta tensors): what counts as a linear layer is what the library says.

    Raises:
        SettingsError: when an entry of ``ignore`` names nothing, or a tied output layer would be quantized.
    """
    import torch
    from compressed_tensors.utils import match_named_modules

    model = without_memory(folder)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for entry in ignore:
        if not any(match_named_modules(model, [entry])):
            raise _unknown_layer(entry, list(linear))
    chosen = {name: int(module.in_features) for name, module in match_named_modules(model, ["Linear"], list(ignore))}
    _check_targets(model, linear, chosen)
    return chosen


def without_memory(folder: Path) -> Any:
    """The architecture of a model folder, on meta tensors: modules with names and shapes, and no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


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
