"""Whether a loss runs away, judged from what has been logged so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: Logged steps at the start and at the end that are compared.
WINDOW = 5

#: The loss has run away when it is this many times what it was.
TRAIN_FACTOR = 1.5
VALIDATION_FACTOR = 1.1


@dataclass(frozen=True)
class Divergence:
    """What was seen.

    Attributes:
        text: in one sentence, with the numbers.
        hopeless: whether the weights are lost, as after a loss that is no number.
    """

    text: str
    hopeless: bool = False


def divergence(log: Sequence[Mapping[str, Any]]) -> Divergence | None:
    """The first sign of divergence in a trainer's log, or None.

    Args:
        log: entries with ``step`` and ``loss`` or ``eval_loss``; the validation of step 0 is the untrained base.
    """
    train = [(entry["step"], float(entry["loss"])) for entry in log if "loss" in entry]
    validation = [(entry["step"], float(entry["eval_loss"])) for entry in log if "eval_loss" in entry]
    for step, loss in (*train, *validation):
        if not math.isfinite(loss):
            return Divergence(f"the loss at step {step:.0f} is {loss}", hopeless=True)
    if len(train) >= 2 * WINDOW:
        first, last = (median(loss for _, loss in part) for part in (train[:WINDOW], train[-WINDOW:]))
        if last > TRAIN_FACTOR * first:
            return Divergence(f"the training loss rose from {first:.3f} to {last:.3f}")
    for step, loss in validation[1:]:
        if loss > VALIDATION_FACTOR * validation[0][1]:
            return Divergence(
                f"the validation loss at step {step:.0f} is {loss:.3f}, the base's {validation[0][1]:.3f}"
            )
    return None
