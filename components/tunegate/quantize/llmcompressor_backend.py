"""llm-compressor as the backend: GPTQ for calibrated schemes, rounding for FP8_DYNAMIC."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.progress import Progress, say
from tunegate.quantize.calibration import Calibration
from tunegate.quantize.settings import GROUPED, QuantizeSettings

STEP = "quantize"

#: How llm-compressor's log announces that it quantizes modules.
_QUANTIZING = re.compile(r"^Quantizing (\d+) module")
_SHARD_SIZE = "5GB"

_TOLD = ("WARNING", "ERROR", "CRITICAL")

#: Warnings that tell a person nothing: both are said by the step where they matter.
_EXPECTED = ("tokenizer parallelism", "No accelerator available")


def quantize_model(
    settings: QuantizeSettings,
    *,
    model: Any,
    tokenizer: Any,
    calibration: Calibration | None,
    group_size: int,
    layers: Sequence[str],
) -> None:
    """Quantizes ``model`` in place.

    Args:
        settings: scheme, what to ignore, dampening.
        model: loaded in the dtype to compute in.
        tokenizer: the model's.
        calibration: the rows; None for a scheme that needs none.
        group_size: weights a scale, for a scheme with groups.
        layers: the layers that will be quantized, for the progress lines.
    """
    from llmcompressor import oneshot

    options: dict[str, Any] = {}
    if calibration is not None:
        options = {
            "dataset": _as_dataset(calibration),
            "num_calibration_samples": len(calibration.token_ids),
            "max_seq_length": max(map(len, calibration.token_ids)),
            "shuffle_calibration_samples": False,
        }
    with _log_as_progress(Progress(STEP, len(layers), "layers quantized")):
        oneshot(model=model, tokenizer=tokenizer, recipe=_recipe(settings, group_size), **options)


def _recipe(settings: QuantizeSettings, group_size: int) -> Any:
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    scheme: QuantizationScheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    common: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": list(settings.ignore)}
    if settings.scheme in GROUPED:
        scheme.weights.group_size = group_size
    if settings.scheme == "FP8_DYNAMIC":
        return QuantizationModifier(**common)
    return GPTQModifier(**common, dampening_frac=settings.dampening_frac)


def _as_dataset(calibration: Calibration) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in calibration.token_ids]
    )


@contextlib.contextmanager
def _log_as_progress(progress: Progress) -> Iterator[None]:
    """Turns llm-compressor's log into progress lines; its warnings are said, the rest is dropped."""
    import llmcompressor  # noqa: F401  # configures the log when first imported
    from loguru import logger

    def line(message: Any) -> None:
        record = message.record
        if found := _QUANTIZING.match(record["message"]):
            progress.advance(int(found[1]))
        elif record["level"].name in _TOLD and not any(text in record["message"] for text in _EXPECTED):
            say(STEP, record["message"].splitlines()[0])

    logger.remove()
    sink = logger.add(line, level="INFO", format="{message}")
    try:
        yield
    finally:
        logger.remove(sink)


def save_compressed(model: Any, folder: Path, *, dtypes: dict[str, Any], quantized: Sequence[str]) -> None:
    """Writes the weights as compressed-tensors safetensors.

    Args:
        model: what :func:`quantize_model` left.
        folder: where to.
        dtypes: parameter → the dtype it had on disk. What was not quantized goes back to it, exactly: it was only
            widened to compute. Scales stay as they were computed.
        quantized: names of the quantized layers.
    """
    import torch

    weights = {f"{name}.weight" for name in quantized}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in dtypes and name not in weights:
                parameter.data = parameter.data.to(dtypes[name])
    with _log_as_progress(Progress(STEP, 1, "models saved")), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(str(folder), save_compressed=True, max_shard_size=_SHARD_SIZE)
