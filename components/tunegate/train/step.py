"""Fine-tunes an adapter on the train side of a prepared data set."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import RunError
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, input_digest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.models.files import check_model_folder
from tunegate.models.load import load_tokenizer
from tunegate.models.quiet import quiet
from tunegate.train.adapter_files import save_adapter
from tunegate.train.model import four_bit, four_bit_document, load_base, refuse_unknown_targets
from tunegate.train.page import curves_page
from tunegate.train.settings import TrainSettings
from tunegate.train.trainer import build_trainer

_KEPT = ("loss", "eval_loss", "learning_rate", "grad_norm")


def run(settings: TrainSettings, *, base_model: Path, dataset: Path, output: Path) -> Manifest:
    """Trains and writes the adapter artifact.

    Args:
        settings: method, rank, rate, batch, length.
        base_model: the model folder to adapt.
        dataset: a ``dataset`` artifact of ``prepare``.
        output: where the ``adapter`` artifact will be.

    Raises:
        InputError: when an input cannot be used or the output belongs to other work.
        RunError: when the loss became infinite or not a number.
    """
    check_model_folder(base_model)
    parents = {"base": input_digest(base_model), "dataset": verify(dataset, kind="dataset").content_digest}
    document = settings_document(settings)
    refuse_foreign_output(output, kind="adapter", parents=parents, settings=document)
    return produce(
        output,
        kind="adapter",
        parents=parents,
        settings=document,
        build=lambda folder: _build(folder, settings, base_model, dataset, parents["base"]),
    )


def _build(folder: Path, settings: TrainSettings, base_model: Path, dataset: Path, base_digest: str) -> None:
    from transformers import set_seed

    set_seed(settings.seed)
    say("train", f"loading the base for {settings.method}")
    with quiet():
        tokenizer, model = load_tokenizer(base_model), load_base(base_model, settings)
    refuse_unknown_targets(model, settings)
    base_in_four_bit = four_bit(model)
    with tempfile.TemporaryDirectory() as scratch:
        with quiet("trl", "transformers", "peft"):
            trainer = build_trainer(model, tokenizer, dataset, settings, scratch=Path(scratch))
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        say("train", f"{trainable:,} trainable parameters, {len(trainer.train_dataset)} rows")
        with quiet("trl", "transformers", "peft"):
            trainer.train()
            if not _validated_at_the_end(trainer.state):
                trainer.evaluate()
    history = _history(trainer.state.log_history)
    final = [point["eval_loss"] for point in history if "eval_loss" in point][-1]
    _refuse_divergence(history, final)
    training = {
        "schema_version": 1,
        "base_digest": base_digest,
        "four_bit": four_bit_document(base_in_four_bit),
        "settings": settings_document(settings),
        "summary": {
            "validation_loss_base": history[0]["eval_loss"],
            "validation_loss": final,
            "optimizer_steps": trainer.state.global_step,
            "train_rows": len(trainer.train_dataset),
            "trainable_parameters": trainable,
        },
        "history": history,
    }
    save_adapter(trainer.model, folder, base_model=base_model, base_digest=base_digest)
    (folder / "training.json").write_bytes(pretty_json(training))
    (folder / "page.html").write_text(curves_page(training), "utf-8")
    (folder / "summary.json").write_bytes(pretty_json(training["summary"]))


def _validated_at_the_end(state: Any) -> bool:
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What is drawn and kept of the trainer's log: no times, so that equal runs give equal bytes."""
    points = [{"step": float(e["step"]), **{k: float(e[k]) for k in _KEPT if k in e}} for e in log]
    return [point for point in points if len(point) > 1]


def _refuse_divergence(history: list[Mapping[str, float]] | list[dict[str, float]], final: float) -> None:
    broken = [f"step {point['step']:.0f}: loss {point['loss']}" for point in history if not _finite(point)]
    if broken or not math.isfinite(final):
        raise RunError(
            "Training diverged.",
            seen=f"validation loss {final}, {len(broken)} steps with a loss that is no number",
            expected="finite losses",
            remedy="lower learning_rate or r, and look at the rows for damaged text",
            items=broken,
        )


def _finite(point: Mapping[str, float]) -> bool:
    return math.isfinite(point.get("loss", 0.0))
