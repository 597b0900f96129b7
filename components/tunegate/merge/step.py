"""Merges an adapter into a 16-bit base, or takes over the weights of full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import Build, produce, refuse_foreign_output
from tunegate.contracts.errors import AdapterError, ModelError
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import FileEntry, Manifest, input_digest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.merge.companions import copy_companions, refuse_changed_companions
from tunegate.merge.full import MERGE_BASE, take_over, tuned_sources
from tunegate.merge.measure import HeldOut, held_out_rows, merge_measured
from tunegate.merge.page import full_page, merge_page
from tunegate.merge.settings import DEQUANTIZED, MEASURE, ORIGINAL, MergeSettings
from tunegate.merge.weights import merge_shards, refuse_other_dtypes
from tunegate.models.architecture import read_architecture
from tunegate.models.files import check_model_folder
from tunegate.models.training import FULL, TRAINING_NAME, read_training, refuse_other_base
from tunegate.models.vocabulary import refuse_other_vocabulary
from tunegate.tensors.adapter import Changes, read_changes
from tunegate.tensors.shards import model_specs


def run(
    settings: MergeSettings, *, base_model: Path, adapter: Path, output: Path, dataset: Path | None = None
) -> Manifest:
    """Merges and writes the ``merged`` artifact: a complete model folder.

    Args:
        settings: which base and dtype.
        base_model: the original 16-bit model folder.
        adapter: an ``adapter`` artifact, of full fine-tuning too, or a plain folder in PEFT's format.
        output: where the artifact will be.
        dataset: what the adapter was trained on; only ``merge_base: measure`` reads it, and of it the validation rows.

    Raises:
        InputError: when the adapter does not fit the base, would be left unused or changes nothing.
    """
    config = check_model_folder(base_model)
    if config.get("quantization_config"):
        raise ModelError(
            f"{base_model} is quantized.",
            seen=f"quantization_config {config['quantization_config'].get('quant_method', '')}",
            expected="the original 16-bit weights: merging into quantized ones rounds the update away",
            remedy="give the model that the quantized one was made from",
        )
    parents = {"base": input_digest(base_model), "adapter": input_digest(adapter)}
    held_out = held_out_rows(settings, adapter, dataset)
    if held_out is not None:
        parents["validation_rows"] = held_out.digest
    document = settings_document(settings)
    refuse_foreign_output(output, kind="merged", parents=parents, settings=document)
    build = _builder(settings, base_model, adapter, parents["base"], held_out)
    return produce(output, kind="merged", parents=parents, settings=document, build=build)


def _builder(
    settings: MergeSettings, base_model: Path, adapter: Path, base_digest: str, held_out: HeldOut | None
) -> Build:
    """What writes the artifact: everything that can be refused from headers and configurations is, here."""
    training = read_training(adapter)
    if training is not None and training.get("method") == FULL:
        refuse_other_base(adapter, training, base_digest)
        sources = tuned_sources(base_model, adapter)
        refuse_other_vocabulary(base_model, adapter)
        refuse_changed_companions(base_model, adapter, training)
        return lambda folder: _build_full(folder, settings, base_model, adapter, sources)
    base = model_specs(base_model)
    changes = read_changes(adapter, base, partial(read_architecture, base_model))
    refuse_other_dtypes(adapter, changes, base)
    refuse_other_vocabulary(base_model, adapter)
    four_bit = _four_bit(settings, adapter, training, base_digest)
    refuse_changed_companions(base_model, adapter, training)
    return lambda folder: _build_merge(folder, settings, base_model, adapter, changes, four_bit, held_out)


def _build_full(
    folder: Path, settings: MergeSettings, base_model: Path, adapter: Path, sources: Mapping[str, tuple[Path, str]]
) -> Iterable[FileEntry]:
    say("merge", "full fine-tuning: its weights are taken over, there is no adapter to add")
    changes, files = take_over(base_model, sources, folder, dtype=settings.dtype)
    summary = {
        "tuned_tensors": len(changes),
        "merge_base": MERGE_BASE,
        "changed_share": sum(c.changed for c in changes) / sum(c.elements for c in changes),
    }
    report = {
        "schema_version": 1,
        "merge_base": MERGE_BASE,
        "round_tripped_modules": 0,
        "companions": copy_companions(base_model, adapter, folder, dtype=settings.dtype),
        "tensors": [asdict(change) for change in changes],
    }
    _write_documents(folder, report, summary, full_page(summary, changes))
    return files


def _build_merge(
    folder: Path,
    settings: MergeSettings,
    base_model: Path,
    adapter: Path,
    changes: Changes,
    four_bit: Mapping[str, Any] | None,
    held_out: HeldOut | None,
) -> Iterable[FileEntry]:
    measured = None
    if held_out is not None:
        measured = merge_measured(
            folder, settings, base=base_model, adapter=adapter, changes=changes, held_out=held_out
        )
        four_bit, merged = four_bit if measured.base == DEQUANTIZED else None, measured.merged
    else:
        held = "NF4 round trip" if four_bit else "original weights"
        say("merge", f"{len(changes.tensors)} tensors change; they start from the {held}")
        merged = merge_shards(base_model, adapter, folder, changes, four_bit, settings.dtype)
    modules = merged.modules
    report = {
        "schema_version": 1,
        "merge_base": DEQUANTIZED if four_bit else ORIGINAL,
        "decided_by": _decided_by(settings, held_out),
        "measured": measured.document if measured else None,
        "round_tripped_modules": len(four_bit["modules"]) if four_bit else 0,
        "untied": sorted(changes.untied),
        "companions": copy_companions(base_model, adapter, folder, dtype=settings.dtype, untied=bool(changes.untied)),
        "modules": [asdict(module) for module in modules],
    }
    summary = {
        "merged_pairs": len(changes.pairs),
        "whole_tensors": len(modules) - len(changes.pairs),
        "merge_base": report["merge_base"],
        "decided_by": report["decided_by"],
        "round_tripped_modules": report["round_tripped_modules"],
        "changed_share": sum(m.changed for m in modules) / sum(m.elements for m in modules),
    }
    _write_documents(folder, report, summary, merge_page(summary, modules, measured.document if measured else None))
    return merged.files


def _decided_by(settings: MergeSettings, held_out: HeldOut | None) -> str:
    if settings.merge_base != MEASURE:
        return "setting"
    return "measurement" if held_out is not None else "nothing to measure: the base was not held in 4 bits"


def _write_documents(folder: Path, report: Mapping[str, Any], summary: Mapping[str, Any], page: str) -> None:
    (folder / "merge.json").write_bytes(pretty_json(report))
    (folder / "summary.json").write_bytes(pretty_json(summary))
    (folder / "page.html").write_text(page, "utf-8")


def _four_bit(
    settings: MergeSettings, adapter: Path, training: Mapping[str, Any] | None, base_digest: str
) -> dict[str, Any] | None:
    """How the base was held in training, when the merge must reproduce it.

    Raises:
        AdapterError: when that is not known, or the adapter was trained on another base.
    """
    if training is None:
        if settings.merge_base == ORIGINAL:
            return None
        raise AdapterError(
            f"{adapter} does not say how its base was held in training.",
            seen=f"no {TRAINING_NAME}: it was not trained by tunegate",
            expected="the 4-bit modules, block size and dtype, to reproduce the weights that the adapter saw",
            remedy="set merge_base: original",
        )
    refuse_other_base(adapter, training, base_digest)
    four_bit: dict[str, Any] | None = training["four_bit"]
    if four_bit is None and settings.merge_base == MEASURE:
        say("merge", "there is nothing to measure: the base was not held in 4 bits, and the original weights are it")
    return four_bit if settings.merge_base != ORIGINAL else None
