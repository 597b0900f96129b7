"""Rules on the optimization: learning rate, batches, steps, dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunegate.preflight.precision import ADAPTERS
from tunegate.preflight.rule import Context, Remark, Sections
from tunegate.preflight.steps import effective_batch, run_steps, training_rows

#: Where a method is known to train well.
ADAPTER_LEARNING_RATES = (1e-4, 2e-4)
FULL_LEARNING_RATES = (1e-5, 2e-5)

#: Beyond this factor from the known range a run is sure to be wasted.
HOPELESS_FACTOR = 10.0


def trains_every_weight(sections: Sections) -> bool:
    """For rules on full fine-tuning."""
    return bool(sections["train"]["method"] == "full")


def warms_up(sections: Sections) -> bool:
    """For rules on the warm-up."""
    return bool(sections["train"]["warmup_steps"]) and sections["train"]["lr_scheduler_type"] != "constant"


def learning_rate(context: Context) -> Iterator[Remark]:
    """A rate outside the range in which the method is known to train well."""
    rate, method = context.of("train")["learning_rate"], context.of("train")["method"]
    low, high = ADAPTER_LEARNING_RATES if method in ADAPTERS else FULL_LEARNING_RATES
    if low <= rate <= high:
        return
    hopeless = rate > high * HOPELESS_FACTOR or rate < low / HOPELESS_FACTOR
    yield Remark(
        "error" if hopeless else "warning",
        f"train.learning_rate {rate:g}, outside {low:g} to {high:g} for {method}"
        + (" by more than ten times" if hopeless else ""),
        f"choose a learning_rate between {low:g} and {high:g}",
    )


def eval_batch(context: Context) -> Iterator[Remark]:
    """Validation that needs more memory than training."""
    validation = context.of("train")["per_device_eval_batch_size"]
    train = context.of("train")["per_device_train_batch_size"]
    if validation > train:
        yield Remark(
            "warning",
            f"train.per_device_eval_batch_size {validation} is larger than the train batch {train}",
            "make it no larger than the train batch: validation holds logits of the whole batch",
        )


def paged_optimizer(context: Context) -> Iterator[Remark]:
    """Paging as the plan rather than as the way out."""
    optim = context.of("train")["optim"]
    if optim.startswith("paged"):
        yield Remark(
            "warning",
            f"train.optim {optim}: paging is for spikes and slows every step that pages",
            "use auto, which pages only where the memory plan says so, or a smaller batch",
        )


def full_bfloat16(context: Context) -> Iterator[Remark]:
    """Weights that cannot take up the steps: bfloat16 keeps 8 bits, so steps below 1/512 of a weight are lost."""
    if context.of("train")["dtype"] == "bfloat16":
        yield Remark(
            "warning",
            "train.dtype bfloat16 with method full: a step of about learning_rate is less than bfloat16 can add to "
            "most weights, and is rounded away",
            "use dtype auto: float32 weights, and bfloat16 computation on a GPU; or train an adapter to save memory",
        )


def warmup_length(context: Context) -> Iterator[Remark]:
    """A peak that is never reached."""
    warmup, steps = context.of("train")["warmup_steps"], run_steps(context).expected
    if warmup >= steps:
        yield Remark(
            "warning",
            f"train.warmup_steps {warmup}, and the run has about {steps} optimizer steps: "
            "the learning rate never reaches its peak, or never falls",
            f"lower warmup_steps to {steps // 10}, a tenth of the run, or train longer",
        )


def batch_exceeds_rows(context: Context) -> Iterator[Remark]:
    """One optimizer step an epoch."""
    train = context.of("train")
    batch, rows = effective_batch(train), training_rows(context)
    if batch > rows:
        yield Remark(
            "warning",
            f"{_product(train)} = {batch} rows an optimizer step, and about {rows} to train on: one step an epoch",
            "lower per_device_train_batch_size or gradient_accumulation_steps",
        )


def _product(train: Mapping[str, Any]) -> str:
    return (
        f"train.per_device_train_batch_size {train['per_device_train_batch_size']} × "
        f"gradient_accumulation_steps {train['gradient_accumulation_steps']}"
    )
