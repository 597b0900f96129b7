"""quantize: a merged model in a scheme that the serving engine runs, made by one of the backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, input_digest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.schemes import AUTO_SCHEME, GPTQ
from tunegate.contracts.settings import settings_document
from tunegate.models.companions import COMPANIONS, companion_digests, refuse_other_companions
from tunegate.preflight.scheme_choice import SchemeFit
from tunegate.quantize.backends import BACKENDS, Backend
from tunegate.quantize.calibration import (
    Calibration,
    calibration_rows,
    check_enough_tokens,
    described,
    render_calibration,
)
from tunegate.quantize.group_size import pick_group_size
from tunegate.quantize.layers import check_ignore, check_unquantized, linear_widths
from tunegate.quantize.page import quantization_page
from tunegate.quantize.result import carry_over, check_result, relative_errors
from tunegate.quantize.serving import decide
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.work import STEP, Work

KIND = "quantized"

#: What merge says of the model, where merge made it.
MERGE_NAME = "merge.json"

SCHEMA_VERSION = 2


def run(settings: QuantizeSettings, *, model: Path, dataset: Path, output: Path) -> Manifest:
    """Quantizes a merged model.

    Args:
        settings: the scheme and its calibration.
        model: what merge made, or a plain model folder with 16-bit or 32-bit weights.
        dataset: what prepare made; its calibration rows are used by the schemes that need some.
        output: where the quantized model goes.

    Raises:
        SettingsError, DataError, ModelError, ArtifactError, OutputExistsError: before the model is loaded.
        RunError: when the result is not what it should be; nothing is written then.
    """
    check_ignore(settings.ignore)
    made_by_us = (model / MANIFEST_NAME).is_file()
    check_unquantized(model)
    _refuse_changed_companions(model)
    parents = {
        "model": input_digest(model, kind="merged" if made_by_us else None),
        "dataset": verify(dataset, kind="dataset").content_digest,
    }
    document = {name: value for name, value in settings_document(settings).items() if name != "legacy_python"}
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    widths = linear_widths(model, ignore=settings.ignore)
    made, fit = decide(settings, widths)
    group_size = pick_group_size(widths, asked=made.group_size) if made.grouped else 0
    backend = BACKENDS[made.backend]
    backend.check(made, model, tuple(widths))
    calibration = _calibration(made, model, dataset, widest=max(widths.values()))

    def build(folder: Path) -> None:
        work = Work(made, model, folder, tuple(widths), group_size, calibration)
        _quantize(work, backend)
        result = _result(work, backend, parents, widths, _served(settings, fit))
        (folder / "quantize.json").write_bytes(pretty_json(result))
        (folder / "summary.json").write_bytes(pretty_json(_summary(result)))
        (folder / "page.html").write_text(quantization_page(result), "utf-8")

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _refuse_changed_companions(model: Path) -> None:
    """Calibration rows are rendered with the model's own template: it must be the one that merge took over."""
    path = model / MERGE_NAME
    stated = read_json_object(path).get(COMPANIONS) if path.is_file() else None
    refuse_other_companions(model, companion_digests(model), stated, stated_by=MERGE_NAME)


def _calibration(settings: QuantizeSettings, model: Path, dataset: Path, *, widest: int) -> Calibration | None:
    """The calibration rows' tokens; None for a scheme without calibration."""
    from tunegate.models.load import load_tokenizer

    if not settings.calibrated:
        return None
    rows = calibration_rows(dataset, count=settings.num_calibration_samples)
    calibration = render_calibration(load_tokenizer(model), rows, max_length=settings.max_length)
    if settings.made_by == GPTQ:
        check_enough_tokens(calibration, widest=widest)
    return calibration


def _quantize(work: Work, backend: Backend) -> None:
    """Quantizes, and checks what came of it."""
    say(STEP, _plan(work))
    backend.quantize(work)
    carry_over(work.source, work.folder)
    check_result(work.source, work.folder, layers=work.layers, form=backend.format, rescaled=work.rescales)


def _plan(work: Work) -> str:
    groups = f" in groups of {work.group_size}" if work.group_size else ""
    calibration = work.calibration
    rows = f", {len(calibration.row_ids)} rows with {calibration.tokens} tokens" if calibration else ""
    settings = work.settings
    made_by = f"{settings.backend}, {settings.made_by}"
    return f"{settings.scheme} ({made_by}){groups}: {len(work.layers)} layers{rows}"


def _served(settings: QuantizeSettings, fit: SchemeFit | None) -> dict[str, Any]:
    """What the serving target makes of the scheme, and who picked it; empty where no target is named."""
    if fit is None:
        return {}
    picked_by = AUTO_SCHEME if settings.scheme == AUTO_SCHEME else "the settings"
    return {
        "target": fit.target,
        "served": fit.served,
        "picked_by": picked_by,
        "reason": fit.reason,
        "source": fit.source,
    }


def _result(
    work: Work, backend: Backend, parents: Mapping[str, str], widths: Mapping[str, int], serving: Mapping[str, Any]
) -> dict[str, Any]:
    errors = relative_errors(work.source, work.folder, layers=work.layers, form=backend.format, rescaled=work.rescales)
    return {
        "schema_version": SCHEMA_VERSION,
        "model_digest": parents["model"],
        "dataset_digest": parents["dataset"],
        "scheme": work.settings.scheme,
        "backend": work.settings.backend,
        "algorithm": work.settings.made_by,
        "serving": dict(serving),
        "group_size": work.group_size,
        "ignore": list(work.settings.ignore),
        COMPANIONS: companion_digests(work.folder),
        "calibration": described(work.calibration, max_length=work.settings.max_length) if work.calibration else {},
        "bytes_before": _weights_bytes(work.source),
        "bytes_after": _weights_bytes(work.folder),
        "layers": {name: {"inputs": width, "relative_error": round(errors[name], 9)} for name, width in widths.items()},
    }


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    errors: Sequence[float] = [layer["relative_error"] for layer in result["layers"].values()]
    return {
        "scheme": result["scheme"],
        "backend": result["backend"],
        "algorithm": result["algorithm"],
        "group_size": result["group_size"],
        "layers": len(errors),
        "mean_relative_error": sum(errors) / len(errors),
        "bytes_before": result["bytes_before"],
        "bytes_after": result["bytes_after"],
        "size_ratio": result["bytes_after"] / result["bytes_before"],
    }
