"""llm-compressor as the backend: GPTQ, AWQ and rounding, in the compressed-tensors format."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.progress import Progress, say
from tunegate.contracts.schemes import AWQ, GPTQ
from tunegate.quantize.awq_layers import check_rescaled_whole
from tunegate.quantize.calibration import Calibration
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.work import STEP, Work
from tunegate.tensors.shards import model_specs, torch_dtype

#: How llm-compressor's log announces that it quantizes modules.
_QUANTIZING = re.compile(r"^Quantizing (\d+) module")
#: How it announces that a scaling was chosen for the layers behind a module.
_SCALED = re.compile(r"^AWQ grid search for (\S+):")
_SHARD_SIZE = "5GB"

_TOLD = ("WARNING", "ERROR", "CRITICAL")

#: Warnings that tell a person nothing: what matters of it is said by the step.
_EXPECTED = (
    "tokenizer parallelism",
    "No accelerator available",
    "due to incompatible shapes",
    "no layers are targeted for quantization",
)


def check(settings: QuantizeSettings, source: Path, layers: Sequence[str]) -> None:
    """Takes every linear layer of every architecture, and any choice of them that AWQ does not rescale in part.

    Raises:
        SettingsError: naming the layers that AWQ would rescale though they are to stay as they are.
    """
    if settings.made_by == AWQ:
        check_rescaled_whole(source, layers)


def quantize(work: Work) -> None:
    """Loads, quantizes and saves."""
    from transformers import set_seed

    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    with quiet("transformers", "datasets", "torch.fx"):
        say(STEP, f"loading {work.source}")
        set_seed(work.settings.seed)
        model, tokenizer = load_causal_lm(work.source), load_tokenizer(work.source)
        _quantize_loaded(work, model, tokenizer)
        _save_compressed(model, work.folder, dtypes=_dtypes(work.source), quantized=work.layers)


def _quantize_loaded(work: Work, model: Any, tokenizer: Any) -> None:
    """Quantizes ``model`` in place."""
    from llmcompressor import oneshot

    options: dict[str, Any] = {}
    if work.calibration is not None:
        options = {
            "dataset": _as_dataset(work.calibration),
            "num_calibration_samples": len(work.calibration.token_ids),
            "max_seq_length": max(map(len, work.calibration.token_ids)),
            "shuffle_calibration_samples": False,
        }
    with _log_as_progress(len(work.layers)), _no_pinned_memory():
        oneshot(model=model, tokenizer=tokenizer, recipe=_recipe(work), **options)


def _recipe(work: Work) -> list[Any]:
    """The modifiers: what looks at activations, and what rounds."""
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    settings = work.settings
    scheme: QuantizationScheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    if settings.grouped:
        scheme.weights.group_size = work.group_size
    common: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": list(settings.ignore)}
    if settings.made_by == GPTQ:
        return [GPTQModifier(**common, dampening_frac=settings.dampening_frac)]
    rounding = QuantizationModifier(**common)
    return [AWQModifier(n_grid=settings.n_grid), rounding] if settings.made_by == AWQ else [rounding]


def _as_dataset(calibration: Calibration) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in calibration.token_ids]
    )


@contextlib.contextmanager
def _no_pinned_memory() -> Iterator[None]:
    """Keeps AWQ from pinning memory where no accelerator could read it: torch refuses to, and the run would end.

    llm-compressor 0.14 pins what it caches whatever there is (pipelines/cache.py, ``_pin_intermediate``). Pinning only
    speeds copies to an accelerator up, so without one there is nothing to lose.
    """
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    original = IntermediatesCache.__dict__["_pin_intermediate"]
    IntermediatesCache._pin_intermediate = classmethod(lambda cls, intermediate: None)
    try:
        yield
    finally:
        IntermediatesCache._pin_intermediate = original


@contextlib.contextmanager
def _log_as_progress(layers: int) -> Iterator[None]:
    """Turns llm-compressor's log into progress lines; its warnings are said, the rest is dropped."""
    import llmcompressor  # noqa: F401  # configures the log when first imported
    from loguru import logger

    quantized = Progress(STEP, layers, "layers quantized")
    searched = [0]

    def line(message: Any) -> None:
        record = message.record
        if found := _QUANTIZING.match(record["message"]):
            quantized.advance(int(found[1]))
        elif found := _SCALED.match(record["message"]):
            searched[0] += 1
            say(STEP, f"scaling {searched[0]}: behind {found[1]}")
        elif record["level"].name in _TOLD and not any(text in record["message"] for text in _EXPECTED):
            say(STEP, record["message"].splitlines()[0])

    logger.remove()
    sink = logger.add(line, level="DEBUG", format="{message}")
    try:
        yield
    finally:
        logger.remove(sink)


def _dtypes(source: Path) -> dict[str, Any]:
    """Tensor → its torch dtype on disk."""
    return {name: torch_dtype(spec.dtype) for name, spec in model_specs(source).items()}


def _save_compressed(model: Any, folder: Path, *, dtypes: dict[str, Any], quantized: Sequence[str]) -> None:
    """Writes the weights as compressed-tensors safetensors.

    Args:
        model: what :func:`_quantize_loaded` left.
        folder: where to.
        dtypes: parameter → the dtype it had on disk. What was not quantized goes back to it, exactly where it was only
            widened to compute, rounded where AWQ rescaled it. Scales stay as they were computed.
        quantized: names of the quantized layers.
    """
    import torch

    weights = {f"{name}.weight" for name in quantized}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in dtypes and name not in weights:
                parameter.data = parameter.data.to(dtypes[name])
    with _log_as_progress(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(str(folder), save_compressed=True, max_shard_size=_SHARD_SIZE)
