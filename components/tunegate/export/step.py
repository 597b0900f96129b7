"""Exports an adapter as plain LoRA of one rank: exactly, or cut to a smaller rank with what that loses."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import Manifest, input_digest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.export.loss import Loss, measure_loss
from tunegate.export.page import export_page
from tunegate.export.ranks import target_rank
from tunegate.export.settings import ExportSettings
from tunegate.models.architecture import read_architecture
from tunegate.models.companions import copy_files
from tunegate.models.files import check_model_folder, tokenizer_files
from tunegate.models.training import FULL, TRAINING_NAME, read_training, refuse_other_base
from tunegate.models.vocabulary import refuse_other_vocabulary
from tunegate.tensors.adapter import Changes, read_changes
from tunegate.tensors.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from tunegate.tensors.export import ExportedModule, named_targets, plain_lora_config, write_plain_lora
from tunegate.tensors.lora import LoraPair
from tunegate.tensors.shards import TensorSpec, model_specs, read_specs

KIND = "exported"

#: What changes a model beside two factors a module, so that no plain LoRA says it.
_MERGE_INSTEAD = ("use_dora", "bias", "lora_bias", "modules_to_save", "trainable_token_indices")


def run(
    settings: ExportSettings, *, base_model: Path, adapter: Path, output: Path, dataset: Path | None = None
) -> Manifest:
    """Exports and writes the ``exported`` artifact: an adapter folder that PEFT and vLLM load.

    Args:
        settings: which rank and dtype.
        base_model: the original model folder that the adapter was trained on.
        adapter: an ``adapter`` artifact, or a plain folder in PEFT's format: LoRA, rsLoRA, patterns, AdaLoRA.
        output: where the artifact will be.
        dataset: a ``dataset`` artifact, on whose validation rows the loss of a cut adapter is measured.

    Raises:
        InputError: when the adapter does not fit the base, is no plain LoRA, changes nothing, or does not fit the rank.
    """
    _refuse_loose_rows(settings, dataset)
    check_model_folder(base_model)
    parents = {"base": input_digest(base_model), "adapter": input_digest(adapter)}
    if dataset is not None:
        parents["dataset"] = input_digest(dataset, kind="dataset")
    document = settings_document(settings)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    _refuse_other_training(adapter, parents["base"])
    _refuse_more_than_factors(adapter)
    base = model_specs(base_model)
    changes = read_changes(adapter, base, partial(read_architecture, base_model))
    _refuse_leftovers(adapter, changes)
    pairs = changes.pairs
    refuse_other_vocabulary(base_model, adapter)
    rank = target_rank(settings, pairs.values())

    def build(folder: Path) -> None:
        _build(folder, settings, base_model, base, adapter, list(pairs.values()), rank, dataset)

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _refuse_loose_rows(settings: ExportSettings, dataset: Path | None) -> None:
    """A cut is told with its loss, and an exact export has none."""
    if bool(settings.reduce_rank_to) == (dataset is not None):
        return
    cut = bool(settings.reduce_rank_to)
    raise SettingsError(
        "A reduced rank and the rows to measure its loss on belong together.",
        seen=f"reduce_rank_to {settings.reduce_rank_to} and " + ("no data set" if cut else f"the data set {dataset}"),
        expected="both, or neither: an exact export loses nothing that could be measured",
        remedy="give the data set that prepare wrote" if cut else "leave the data set out, or give reduce_rank_to",
    )


def _refuse_other_training(adapter: Path, base_digest: str) -> None:
    training = read_training(adapter)
    if training is None:
        return
    refuse_other_base(adapter, training, base_digest)
    if training.get("method") == FULL:
        raise AdapterError(
            f"{adapter} is no adapter: it holds a fully tuned model.",
            seen=f"method: {FULL} in {TRAINING_NAME}",
            expected="an adapter of LoRA, QLoRA or AdaLoRA",
            remedy="merge takes it over as it is: serve the merged model",
        )


def _refuse_more_than_factors(adapter: Path) -> None:
    """Refuses what a merge may take in and two factors a module cannot say."""
    try:
        config = read_json_object(adapter / ADAPTER_CONFIG)
    except ValueError:
        return  # read_pairs says what an adapter is
    wrong = [f"{name}: {config[name]}" for name in _MERGE_INSTEAD if config.get(name) and config[name] != "none"]
    if wrong:
        raise _merge_instead(adapter, ", ".join(wrong), wrong)


def _refuse_leftovers(adapter: Path, changes: Changes) -> None:
    linear = [pair for pair in changes.pairs.values() if not pair.embedding and pair.weight not in changes.untied]
    used = {name for pair in linear for name in (pair.a, pair.b, pair.e)}
    left = sorted(read_specs(adapter / ADAPTER_WEIGHTS).keys() - used)
    if left:
        raise _merge_instead(adapter, f"{len(left)} tensor(s) beside the factors of linear modules", left)


def _merge_instead(adapter: Path, seen: str, items: list[str]) -> AdapterError:
    return AdapterError(
        f"The adapter in {adapter} cannot be exported as plain LoRA.",
        seen=seen,
        expected="factors A and B of linear modules, and AdaLoRA's singular values between them",
        remedy="merge instead, and serve the merged model",
        items=items,
    )


def _build(
    folder: Path,
    settings: ExportSettings,
    base_model: Path,
    base: Mapping[str, TensorSpec],
    adapter: Path,
    pairs: Collection[LoraPair],
    rank: int,
    dataset: Path | None,
) -> None:
    config = read_adapter_config(adapter)
    largest = max(pair.rank for pair in pairs)
    say("export", f"{len(pairs)} modules of ranks up to {largest} become LoRA of rank {rank}")
    modules = _write_adapter(folder, base, adapter, config, pairs, rank, settings.dtype)
    loss = _loss(folder, base_model, base, adapter, config, pairs, dataset) if dataset else None
    report = {
        "schema_version": 1,
        "peft_type": config["peft_type"],
        "rank": rank,
        "largest_rank": largest,
        "cut": loss is not None,
        "loss": asdict(loss) if loss else None,
        "companions": _copy_companions(base_model, adapter, folder),
        "modules": [asdict(module) for module in modules],
    }
    summary: dict[str, Any] = {
        "modules": len(modules),
        "rank": rank,
        "largest_rank": largest,
        "energy": _energy(modules),
        "weights_bytes": (folder / ADAPTER_WEIGHTS).stat().st_size,
        **({f"loss_{name}": value for name, value in asdict(loss).items()} if loss else {}),
    }
    (folder / "export.json").write_bytes(pretty_json(report))
    (folder / "summary.json").write_bytes(pretty_json(summary))
    (folder / "page.html").write_text(export_page(summary, modules), "utf-8")


def _write_adapter(
    folder: Path,
    base: Mapping[str, TensorSpec],
    adapter: Path,
    config: Mapping[str, Any],
    pairs: Collection[LoraPair],
    rank: int,
    dtype: str,
) -> list[ExportedModule]:
    modules = write_plain_lora(adapter, pairs, folder, rank=rank, dtype=dtype, step="export")
    weights = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    targets = named_targets([pair.module for pair in pairs], weights)
    document = plain_lora_config(config, rank=rank, target_modules=targets)
    (folder / ADAPTER_CONFIG).write_bytes(pretty_json(document))
    return modules


def _loss(
    folder: Path,
    base_model: Path,
    base: Mapping[str, TensorSpec],
    adapter: Path,
    config: Mapping[str, Any],
    pairs: Collection[LoraPair],
    dataset: Path,
) -> Loss:
    """Measures the cut adapter beside the exact one, which PEFT holds on the same base only as LoRA."""
    exact = folder / "exact"
    exact.mkdir()
    try:
        largest = max(pair.rank for pair in pairs)
        _write_adapter(exact, base, adapter, config, pairs, largest, "float32")
        return measure_loss(base_model, exact=exact, reduced=folder, dataset=dataset)
    finally:
        shutil.rmtree(exact)


def _copy_companions(base_model: Path, adapter: Path, folder: Path) -> dict[str, str]:
    """Copies the tokenizer that the adapter was trained with, or the base's, and how it was trained, byte for byte."""
    training = [adapter / TRAINING_NAME] if (adapter / TRAINING_NAME).is_file() else []
    return copy_files([*(tokenizer_files(adapter) or tokenizer_files(base_model)), *training], folder)


def _energy(modules: Collection[ExportedModule]) -> float:
    """The share of the squared norm of all updates that is kept."""
    squares = sum(module.norm**2 for module in modules)
    return sum(module.energy * module.norm**2 for module in modules) / squares
