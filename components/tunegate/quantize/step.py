"""quantize: a merged model in a scheme that the serving engine runs, made by llm-compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import SettingsError
from tunegate.contracts.files import pretty_json, sha256_json
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, input_digest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.quantize.calibration import Calibration, calibration_rows, check_enough_tokens, render_calibration
from tunegate.quantize.group_size import pick_group_size
from tunegate.quantize.layers import check_ignore, check_unquantized, linear_widths
from tunegate.quantize.llmcompressor_backend import STEP, quantize_model, save_compressed
from tunegate.quantize.page import quantization_page
from tunegate.quantize.result import carry_over, check_result, relative_errors
from tunegate.quantize.settings import CALIBRATED, GROUPED, QuantizeSettings
from tunegate.tensors.shards import model_specs

KIND = "quantized"
SCHEMA_VERSION = 1


def run(settings: QuantizeSettings, *, model: Path, dataset: Path, output: Path) -> Manifest:
    """Quantizes a merged model.

    Args:
        settings: the scheme and its calibration.
        model: what merge made, or a plain model folder with 16-bit or 32-bit weights.
        dataset: what prepare made; its calibration rows are used by the schemes that need some.
        output: where the quantized model goes, in the compressed-tensors format.

    Raises:
        SettingsError, DataError, ModelError, ArtifactError, OutputExistsError: before the model is loaded.
        RunError: when the result is not what it should be; nothing is written then.
    """
    _check_scheme(settings)
    check_ignore(settings.ignore)
    made_by_us = (model / MANIFEST_NAME).is_file()
    check_unquantized(model)
    parents = {
        "model": input_digest(model, kind="merged" if made_by_us else None),
        "dataset": verify(dataset, kind="dataset").content_digest,
    }
    document = settings_document(settings)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    widths = linear_widths(model, ignore=settings.ignore)
    group_size = pick_group_size(widths, asked=settings.group_size) if settings.scheme in GROUPED else 0
    calibration = _calibration(settings, model, dataset, widest=max(widths.values()))

    def build(folder: Path) -> None:
        _quantize(settings, model, calibration, group_size, widths, folder)
        result = _result(settings, parents, model, calibration, group_size, widths, folder)
        (folder / "quantize.json").write_bytes(pretty_json(result))
        (folder / "summary.json").write_bytes(pretty_json(_summary(result)))
        (folder / "page.html").write_text(quantization_page(result), "utf-8")

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _check_scheme(settings: QuantizeSettings) -> None:
    if settings.group_size and settings.scheme not in GROUPED:
        raise SettingsError(
            f"quantize.group_size has no meaning for {settings.scheme}.",
            seen=f"group_size {settings.group_size}",
            expected=f"0: {settings.scheme} has one scale for each output",
            remedy=f"leave group_size out, or use {' or '.join(GROUPED)}",
        )


def _calibration(settings: QuantizeSettings, model: Path, dataset: Path, *, widest: int) -> Calibration | None:
    """The calibration rows' tokens; None for a scheme without calibration."""
    from tunegate.models.load import load_tokenizer

    if settings.scheme not in CALIBRATED:
        return None
    rows = calibration_rows(dataset, count=settings.num_calibration_samples)
    calibration = render_calibration(load_tokenizer(model), rows, max_length=settings.max_length)
    check_enough_tokens(calibration, widest=widest)
    return calibration


def _quantize(
    settings: QuantizeSettings,
    source: Path,
    calibration: Calibration | None,
    group_size: int,
    widths: Mapping[str, int],
    folder: Path,
) -> None:
    """Loads, quantizes, saves and checks."""
    from transformers import set_seed

    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    with quiet("transformers", "datasets", "torch.fx"):
        say(STEP, f"loading {source}")
        set_seed(settings.seed)
        loaded, tokenizer = load_causal_lm(source), load_tokenizer(source)
        say(STEP, _plan(settings, calibration, group_size, widths))
        quantize_model(
            settings,
            model=loaded,
            tokenizer=tokenizer,
            calibration=calibration,
            group_size=group_size,
            layers=list(widths),
        )
        save_compressed(loaded, folder, dtypes=_dtypes(source), quantized=list(widths))
    carry_over(source, folder)
    check_result(source, folder, layers=list(widths))


def _plan(
    settings: QuantizeSettings, calibration: Calibration | None, group_size: int, widths: Mapping[str, int]
) -> str:
    groups = f" in groups of {group_size}" if group_size else ""
    rows = f", {len(calibration.row_ids)} rows with {calibration.tokens} tokens" if calibration else ""
    return f"{settings.scheme}{groups}: {len(widths)} layers{rows}"


def _dtypes(source: Path) -> dict[str, Any]:
    """Tensor → its torch dtype on disk."""
    import torch

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return {name: names[spec.dtype] for name, spec in model_specs(source).items()}


def _result(
    settings: QuantizeSettings,
    parents: Mapping[str, str],
    source: Path,
    calibration: Calibration | None,
    group_size: int,
    widths: Mapping[str, int],
    folder: Path,
) -> dict[str, Any]:
    errors = relative_errors(source, folder, layers=list(widths))
    return {
        "schema_version": SCHEMA_VERSION,
        "model_digest": parents["model"],
        "dataset_digest": parents["dataset"],
        "scheme": settings.scheme,
        "group_size": group_size,
        "ignore": list(settings.ignore),
        "calibration": _described(calibration),
        "bytes_before": _weights_bytes(source),
        "bytes_after": _weights_bytes(folder),
        "layers": {name: {"inputs": width, "relative_error": round(errors[name], 9)} for name, width in widths.items()},
    }


def _described(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {}
    return {
        "rows": len(calibration.row_ids),
        "tokens": calibration.tokens,
        "truncated": calibration.truncated,
        "rows_digest": sha256_json(sorted(calibration.row_ids)),
    }


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    errors: Sequence[float] = [layer["relative_error"] for layer in result["layers"].values()]
    return {
        "scheme": result["scheme"],
        "group_size": result["group_size"],
        "layers": len(errors),
        "mean_relative_error": sum(errors) / len(errors),
        "bytes_before": result["bytes_before"],
        "bytes_after": result["bytes_after"],
        "size_ratio": result["bytes_after"] / result["bytes_before"],
    }
