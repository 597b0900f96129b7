"""How many optimizer steps a run will have, as far as the number of rows tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.preflight.rule import Context


@dataclass(frozen=True)
class Steps:
    """Optimizer steps.

    Attributes:
        expected: with the share of rows that is trained on.
        at_most: if every row were trained on: repeated and too long ones are left out, and sides are drawn by lot.
    """

    expected: int
    at_most: int


def training_rows(context: Context) -> int:
    """How many rows are trained on, before repeated and too long ones are left out; at least 1."""
    prepare = context.of("prepare")
    share: float = 1 - prepare["validation_fraction"] - prepare["evaluation_fraction"]
    return max(1, round(context.sample.rows * share))


def effective_batch(train: Mapping[str, Any]) -> int:
    """Rows of one optimizer step on one device."""
    return int(train["per_device_train_batch_size"]) * int(train["gradient_accumulation_steps"])


def optimizer_steps(rows: int, train: Mapping[str, Any]) -> int:
    """Optimizer steps on one device; the last batches of an epoch may be smaller, and count."""
    batches = math.ceil(rows / int(train["per_device_train_batch_size"]))
    return math.ceil(math.ceil(batches / int(train["gradient_accumulation_steps"])) * float(train["num_train_epochs"]))


def run_steps(context: Context) -> Steps:
    """The run's steps."""
    train = context.of("train")
    return Steps(optimizer_steps(training_rows(context), train), optimizer_steps(context.sample.rows, train))
