"""Fine-tunes an adapter on the train side of a prepared data set."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import RunError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import Manifest, input_digest, verify, work_digest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.models.companions import COMPANIONS, companion_digests, refuse_other_companions, tokenizer_digests
from tunegate.models.files import check_model_folder, read_config
from tunegate.models.four_bit import four_bit, four_bit_document
from tunegate.models.load import device_type, load_tokenizer
from tunegate.models.quiet import quiet
from tunegate.train.adalora import rank_table
from tunegate.train.adapter_files import save_adapter
from tunegate.train.checkpoints import Checkpoints, interrupted, open_checkpoints
from tunegate.train.divergence import Divergence, divergence
from tunegate.train.full_files import changed_share, refuse_quantized, save_full
from tunegate.train.hold import decide, longest_row
from tunegate.train.model import load_base, refuse_unknown_targets
from tunegate.train.page import curves_page
from tunegate.train.settings import TrainSettings
from tunegate.train.trainer import advice, build_trainer, refuse_many_devices, refuse_missing_trackers

_KEPT = ("loss", "eval_loss", "learning_rate", "grad_norm", "orthogonality")

#: What tells of the run and not of the adapter: it may differ between runs that give the same adapter.
_VOLATILE = ("page.html", "timings.json")

#: Settings that say how a run is watched. Changing one between two attempts leaves the work what it was.
_WATCHING = ("checkpoint_seconds", "report_to", "on_divergence")


def run(
    settings: TrainSettings,
    *,
    base_model: Path,
    dataset: Path,
    output: Path,
    checkpoint_uri: str = "",
    keep_last: bool = False,
) -> Manifest:
    """Trains and writes the adapter artifact.

    With a ``checkpoint_uri`` the same work, interrupted or killed before, goes on from its last checkpoint and ends
    with the same bytes; its checkpoints are removed when the artifact is complete.

    Args:
        settings: method, rank, rate, batch, length.
        base_model: the model folder to adapt.
        dataset: a ``dataset`` artifact of ``prepare``.
        output: where the ``adapter`` artifact will be.
        checkpoint_uri: a folder or gs:// address where checkpoints are kept; empty for none.
        keep_last: leave the last checkpoint, for when the artifact must still be carried to where it stays: a machine
            that is lost meanwhile would otherwise lose the whole run.

    Raises:
        InputError: when an input cannot be used or the output belongs to other work.
        Interrupted: when the process was asked to stop.
        RunError: when the loss became infinite or not a number, or ran away and the settings say to stop then.
    """
    config = check_model_folder(base_model)
    if settings.method == "full":
        refuse_quantized(config, base_model)
    refuse_missing_trackers(settings)
    refuse_many_devices()
    _refuse_other_tokenizer(base_model, dataset)
    parents = {"base": input_digest(base_model), "dataset": verify(dataset, kind="dataset").content_digest}
    document = settings_document(settings)
    refuse_foreign_output(output, kind="adapter", parents=parents, settings=document)
    work = {name: value for name, value in document.items() if name not in _WATCHING}
    checkpoints = open_checkpoints(checkpoint_uri, work_digest("adapter", parents, work))
    manifest = produce(
        output,
        kind="adapter",
        parents=parents,
        settings=document,
        volatile=_VOLATILE,
        build=lambda folder: _build(folder, settings, base_model, dataset, parents["base"], checkpoints),
    )
    if checkpoints is not None:
        checkpoints.remove(but_last=int(keep_last))
    return manifest


def _build(
    folder: Path,
    settings: TrainSettings,
    base_model: Path,
    dataset: Path,
    base_digest: str,
    checkpoints: Checkpoints | None,
) -> None:
    from transformers import set_seed

    set_seed(settings.seed)
    held = decide(settings, read_config(base_model), longest_row(dataset), device=device_type())
    say("train", held.reason)
    say("train", f"loading the base for {settings.method}")
    with quiet():
        tokenizer, model = load_tokenizer(base_model), load_base(base_model, settings)
    if settings.method != "full":
        refuse_unknown_targets(model, settings)
    base_in_four_bit = four_bit(model)
    with tempfile.TemporaryDirectory() as scratch:
        with quiet("trl", "transformers", "peft"):
            trainer = build_trainer(model, tokenizer, dataset, settings, held, scratch=Path(scratch))
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        say("train", f"{trainable:,} trainable parameters, {len(trainer.train_dataset)} rows")
        with quiet("trl", "transformers", "peft"):
            _train(trainer, checkpoints, settings.checkpoint_seconds, Path(scratch))
    log = trainer.state.log_history
    diverged = _refuse_divergence(log, settings)
    history = _history(log)
    training: dict[str, Any] = {
        "schema_version": 1,
        "method": settings.method,
        "base_digest": base_digest,
        COMPANIONS: companion_digests(base_model),
        "four_bit": four_bit_document(base_in_four_bit),
        "settings": settings_document(settings),
        "held": {"gradient_checkpointing": held.gradient_checkpointing, "optim": held.optim},
        "summary": {
            "validation_loss_base": history[0]["eval_loss"],
            "validation_loss": [point["eval_loss"] for point in history if "eval_loss" in point][-1],
            "optimizer_steps": trainer.state.global_step,
            "train_rows": len(trainer.train_dataset),
            "trainable_parameters": trainable,
        },
        "advice": [f"{diverged.text}: {advice(settings)}"] if diverged else [],
        "history": history,
    }
    if settings.method == "adalora":
        training["ranks"] = rank_table(trainer.model)
    if settings.method == "full":
        training["summary"]["changed_share"] = changed_share(save_full(trainer.model, folder, base_model=base_model))
    else:
        save_adapter(trainer.model, folder, base_model=base_model, base_digest=base_digest)
    timings = _throughput(log)
    (folder / "training.json").write_bytes(pretty_json(training))
    (folder / "timings.json").write_bytes(pretty_json({"schema_version": 1, "tokens_per_second": timings}))
    (folder / "page.html").write_text(curves_page(training, timings), "utf-8")
    (folder / "summary.json").write_bytes(pretty_json(training["summary"]))


def _refuse_other_tokenizer(base_model: Path, dataset: Path) -> None:
    """Lengths, turns and ends of answers were checked with one tokenizer and template: no other may train on them."""
    path = dataset / "profile.json"
    stated = read_json_object(path).get(COMPANIONS) if path.is_file() else None
    refuse_other_companions(base_model, tokenizer_digests(base_model), stated, stated_by=f"the data set's {path.name}")


def _train(trainer: Any, checkpoints: Checkpoints | None, every_seconds: float, scratch: Path) -> None:
    """Trains and validates to the end, from the last checkpoint where there is one.

    Raises:
        Interrupted: when the process was asked to stop; the last finished step is kept where it can be.
    """
    from tunegate.train.interruption import CheckpointKeeper, Interruption, ValidationStopped

    last = checkpoints.fetch_last(scratch) if checkpoints is not None else None
    with Interruption() as interruption:
        keeper = CheckpointKeeper(checkpoints, every_seconds=every_seconds, interruption=interruption)
        trainer.add_callback(keeper)
        with contextlib.suppress(ValidationStopped):
            if last is None:
                trainer.train()
            else:
                keeper.kept_step = int(last.name.removeprefix("checkpoint-"))
                say("train", f"going on after step {keeper.kept_step}")
                trainer.resume(str(last))
            lost = divergence(trainer.state.log_history)
            if not interruption.requested and not _validated_at_the_end(trainer.state) and not (lost and lost.hopeless):
                trainer.evaluate()
    finished = trainer.state.global_step >= trainer.state.max_steps and _validated_at_the_end(trainer.state)
    if interruption.requested and not finished:
        raise interrupted(trainer.state.global_step, keeper.kept_step, place=checkpoints is not None)


def _validated_at_the_end(state: Any) -> bool:
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What is drawn and kept of the trainer's log: no times, so that equal runs give equal bytes."""
    points = [{"step": float(e["step"]), **{k: float(e[k]) for k in _KEPT if k in e}} for e in log]
    return [point for point in points if len(point) > 1]


def _throughput(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Tokens per second of each step: what differs from run to run."""
    return [
        {"step": float(e["step"]), "tokens_per_second": float(e["tokens_per_second"])}
        for e in log
        if "tokens_per_second" in e
    ]


def _refuse_divergence(log: list[dict[str, Any]], settings: TrainSettings) -> Divergence | None:
    """What was seen of a loss that runs away, when the run may go on all the same.

    Raises:
        RunError: when the weights are lost, or the settings say that such a run ends.
    """
    found = divergence(log)
    if found is not None and (found.hopeless or settings.on_divergence == "stop"):
        raise RunError(
            "Training diverged.",
            seen=found.text,
            expected="finite losses that do not rise",
            remedy=f"{advice(settings)}, and look at the rows for damaged text",
        )
    return found
