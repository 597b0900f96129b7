"""TRL's SFTTrainer, set up for completion-only loss and for what its defaults get wrong here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunegate.train.callbacks import progress_callback
from tunegate.train.model import lora_config
from tunegate.train.settings import TrainSettings

#: Columns of a prepared row that TRL trains on; the others are for people and for evaluation.
_TRAINED_COLUMNS = ("prompt", "completion", "text")


def load_side(dataset: Path, side: str, *, scratch: Path) -> Any:
    """One side of a prepared data set, with the columns that TRL trains on; nothing is left in a cache elsewhere."""
    from datasets import Dataset

    rows = Dataset.from_json(str(dataset / f"{side}.jsonl"), keep_in_memory=True, cache_dir=str(scratch / "rows"))
    return rows.select_columns([name for name in rows.column_names if name in _TRAINED_COLUMNS])


def optimizer_steps(rows: int, settings: TrainSettings) -> int:
    """How many optimizer steps the run has on one device."""
    batches = math.ceil(rows / settings.per_device_train_batch_size)
    return math.ceil(math.ceil(batches / settings.gradient_accumulation_steps) * settings.num_train_epochs)


def sft_config(settings: TrainSettings, *, rows: int, scratch: Path) -> Any:
    """TRL's configuration. Everything that could write, report or load elsewhere is off."""
    import torch
    from trl import SFTConfig

    on_gpu = torch.cuda.is_available()
    steps = optimizer_steps(rows, settings)
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
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=settings.max_length,
        optim=settings.optim,
        completion_only_loss=None,  # TRL's rule: the completion of prompt/completion rows, all of plain text
        train_sampling_strategy="group_by_length",  # measured: 74 against 46 tokens/s on a CPU, less padding
        eval_strategy="steps",
        eval_steps=math.ceil(steps / settings.evaluations_per_run),
        eval_on_start=True,  # step 0 is the base: where the curve starts
        prediction_loss_only=True,  # accumulated logits are what runs out of memory (transformers #8476)
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen, not replaced by the mean
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=on_gpu and settings.dtype != "float32",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )


def build_trainer(model: Any, tokenizer: Any, dataset: Path, settings: TrainSettings, *, scratch: Path) -> Any:
    """A trainer ready to run: adapter on the base, adapter weights in float32.

    TRL casts the adapter of a quantized base to bfloat16. PEFT's default, and what small learning rates need, is
    float32; on a CPU bfloat16 is also many times slower. So the cast is undone before the optimizer exists.
    """
    import torch
    from transformers import PrinterCallback
    from trl import SFTTrainer

    train, validation = (load_side(dataset, side, scratch=scratch) for side in ("train", "validation"))
    trainer = SFTTrainer(
        model=model,
        args=sft_config(settings, rows=len(train), scratch=scratch),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        callbacks=[progress_callback()],
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return trainer
