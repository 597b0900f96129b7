"""The trainer of a run, set up for completion-only loss, batches without padding and what the memory plan decided."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError, SettingsError
from tunegate.contracts.settings import settings_document
from tunegate.preflight.steps import optimizer_steps
from tunegate.train.attention import use_row_attention
from tunegate.train.hold import Held
from tunegate.train.model import lora_config
from tunegate.train.rows_apart import refuse_long_chunks, refuse_mixed_rows
from tunegate.train.settings import IGNORED, TrainSettings

#: Columns of a prepared row that TRL trains on; the others are for people and for evaluation.
_TRAINED_COLUMNS = ("prompt", "completion", "text")

#: Tracker → the packages of which one must be there, and the variable that says where its reports go.
TRACKERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "TENSORBOARD_LOGGING_DIR"),
    "mlflow": (("mlflow",), "MLFLOW_TRACKING_URI"),
}


def load_side(dataset: Path, side: str, *, scratch: Path) -> Any:
    """One side of a prepared data set, with the columns that TRL trains on; nothing is left in a cache elsewhere."""
    from datasets import Dataset

    rows = Dataset.from_json(str(dataset / f"{side}.jsonl"), keep_in_memory=True, cache_dir=str(scratch / "rows"))
    return rows.select_columns([name for name in rows.column_names if name in _TRAINED_COLUMNS])


def refuse_missing_trackers(settings: TrainSettings) -> None:
    """Refuses a tracker that is not installed or does not know where to report to.

    Raises:
        SettingsError: naming it.
    """
    for name in settings.report_to:
        if name not in TRACKERS:
            raise SettingsError(
                "train.report_to names an unknown tracker.",
                seen=repr(name),
                expected=f"of {', '.join(TRACKERS)}",
                remedy="remove it, or correct its name",
            )
        packages, variable = TRACKERS[name]
        installed = any(importlib.util.find_spec(package) for package in packages)
        addressed = bool(os.environ.get(variable))  # its value may hold a password, and is never shown
        if not (installed and addressed):
            raise SettingsError(
                f"train.report_to names {name}, which cannot be reported to.",
                seen=f"{' or '.join(packages)} {'installed' if installed else 'not installed'}, "
                f"{variable} {'set' if addressed else 'not set'}",
                expected=f"the package, and {variable} in the environment of the step",
                remedy=f"install {packages[0]} and set {variable}, or remove {name} from report_to",
            )


def refuse_many_devices() -> None:
    """Refuses to train on more than one device: batches without padding cannot be divided among them yet.

    Raises:
        SettingsError: naming how many there are.
    """
    import torch

    processes, devices = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > 1 or devices > 1:
        raise SettingsError(
            "Training runs on one device.",
            seen=f"{devices} GPUs, WORLD_SIZE {processes}",
            expected="one process that sees one GPU, or none",
            remedy="set CUDA_VISIBLE_DEVICES=0, or ask for one accelerator for this step",
        )


def sft_config(settings: TrainSettings, held: Held, *, rows: int, scratch: Path) -> Any:
    """TRL's configuration. Everything that could write, report or load elsewhere is off unless it was asked for."""
    import torch
    from trl import SFTConfig

    on_gpu = torch.cuda.is_available()
    steps = optimizer_steps(rows, settings_document(settings))
    return SFTConfig(
        output_dir=str(scratch),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=held.gradient_checkpointing,
        padding_free=True,  # the rows of a batch one behind the other: no token is padding
        max_length=None,  # TRL cannot cut rows without padding; build_trainer does
        optim=held.optim,
        completion_only_loss=None,  # TRL's rule: the completion of prompt/completion rows, all of plain text
        eval_strategy="steps",
        eval_steps=math.ceil(steps / settings.evaluations_per_run),
        eval_on_start=True,  # step 0 is the base: where the curve starts
        prediction_loss_only=True,  # accumulated logits are what runs out of memory (transformers #8476)
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen, not replaced by the mean
        save_strategy="no",
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=on_gpu and settings.dtype != "float32" and torch.cuda.is_bf16_supported(),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )


def build_trainer(
    model: Any, tokenizer: Any, dataset: Path, settings: TrainSettings, held: Held, *, scratch: Path
) -> Any:
    """A trainer ready to run, as a :class:`~tunegate.train.tune_trainer.TuneTrainer`: what trains is in float32.

    TRL casts the adapter of a quantized base to bfloat16. PEFT's default, and what small learning rates need, is
    float32; on a CPU bfloat16 is also many times slower. So the cast is undone before the optimizer exists.

    Raises:
        DataError: when rows lose every label to max_length.
        SettingsError: when the model cannot keep the rows of a batch apart.
    """
    import torch
    from transformers import PrinterCallback

    from tunegate.train.adalora import allocator_callback
    from tunegate.train.callbacks import Clock, DivergenceWatch, PagingWatch, ShownProgress
    from tunegate.train.tune_trainer import TuneTrainer

    use_row_attention(model, half=settings.dtype != "float32")
    train, validation = (load_side(dataset, side, scratch=scratch) for side in ("train", "validation"))
    clock = Clock()
    watches = [ShownProgress(), DivergenceWatch(stop=settings.on_divergence == "stop", advice=advice(settings))]
    trainer = TuneTrainer(
        model=model,
        args=sft_config(settings, held, rows=len(train), scratch=scratch),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=peft_config(settings, total_step=optimizer_steps(len(train), settings_document(settings))),
        callbacks=[
            *watches,
            *([PagingWatch()] if held.optim.startswith("paged") else []),
            *([allocator_callback()] if settings.method == "adalora" else []),
        ],
        clock=clock,
        orth_reg_weight=settings.orth_reg_weight if settings.method == "adalora" else 0.0,
    )
    trainer.callback_handler.callbacks.insert(0, clock)  # the others read what it measured
    trainer.remove_callback(PrinterCallback)
    trainer.train_dataset = _cut(trainer.train_dataset, settings.max_length, "train")
    trainer.eval_dataset = _cut(trainer.eval_dataset, settings.max_length, "validation")
    _refuse_mixed_rows(trainer)
    if settings.method != "full":
        for name, parameter in trainer.model.named_parameters():
            if ".ranknum." in name:  # AdaLoRA's divisor: on a 16-bit base PEFT lets it train, and does not save it
                parameter.requires_grad = False
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    return trainer


def _refuse_mixed_rows(trainer: Any) -> None:
    """Refuses batches of several rows for a model that would mix them; the shortest rows tell it soonest."""
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    refuse_long_chunks(trainer.model.config, max(lengths))
    batches = (trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size)
    if max(batches) > 1 and len(lengths) > 1:
        shortest = sorted(range(len(lengths)), key=lengths.__getitem__)[:2]
        refuse_mixed_rows(trainer.model, trainer.data_collator, [trainer.train_dataset[i] for i in shortest])


def peft_config(settings: TrainSettings, *, total_step: int) -> Any:
    """PEFT's configuration of the method, or None for full fine-tuning."""
    from tunegate.train.adalora import adalora_config

    if settings.method == "full":
        return None
    return adalora_config(settings, total_step=total_step) if settings.method == "adalora" else lora_config(settings)


def advice(settings: TrainSettings) -> str:
    """What to change when the loss runs away."""
    rank = "" if settings.method == "full" else f" or r (now {settings.r})"
    return f"lower learning_rate (now {settings.learning_rate:g}){rank}"


def _cut(rows: Any, max_length: int, side: str) -> Any:
    """The tokenized rows, none longer than ``max_length``: their ends are left out.

    Raises:
        DataError: when a row keeps no token with a label: it would be trained on and teach nothing (trl #6668).
    """
    if all(len(ids) <= max_length for ids in rows["input_ids"]):
        return rows
    rows = rows.map(lambda row: {name: value[:max_length] for name, value in row.items() if isinstance(value, list)})
    empty = [i for i, labels in enumerate(rows["labels"]) if all(label == IGNORED for label in labels)]
    if empty:
        raise DataError(
            f"Rows of the {side} side lose every label to max_length.",
            seen=f"{len(empty)} of {len(rows)} rows have their whole completion behind token {max_length}",
            expected="at least one token of the completion in each row",
            remedy="raise max_length, or prepare the data with this max_length and excess_length_strategy: drop",
            items=[f"row {i}" for i in empty],
        )
    return rows
