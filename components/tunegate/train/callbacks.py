"""What is watched while a model is trained: progress, throughput, and whether the loss runs away.

Imported only where a model is trained: it loads transformers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from transformers import TrainerCallback

from tunegate.contracts.progress import Progress, say
from tunegate.train.divergence import divergence

#: Steps at the start and at the end whose median throughput is compared.
PAGING_STEPS = 10

#: Entries of the log, of its start and of its end, that are looked at after each step.
WATCHED = 40

#: A fall to less than this share of the first throughput is told.
PAGING_SHARE = 0.7


class Clock(TrainerCallback):  # type: ignore[misc]
    """Measures training steps, without validation and checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._told: tuple[float, int] = (0.0, 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self._began

    def rate(self, tokens: int) -> float:
        """Tokens per second since the last call.

        Args:
            tokens: how many there were since the start.
        """
        seconds, before = self._told
        self._told = (self.seconds, tokens)
        return (tokens - before) / max(self.seconds - seconds, 1e-9)

    def resume(self, tokens: int) -> None:
        """Counts from ``tokens`` on: those before were trained by an attempt that was interrupted."""
        self._told = (self.seconds, tokens)


class ShownProgress(TrainerCallback):  # type: ignore[misc]
    """Prints steps, loss, tokens/s and time left, and each validation loss."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress = Progress("train", state.max_steps - state.global_step, "steps")
        self.first = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            say("train", f"validation loss {logs['eval_loss']:.4f} at step {state.global_step}")
        if "loss" in logs and self.progress is not None:
            facts = {"loss": f"{logs['loss']:.3f}", "tokens/s": f"{logs.get('tokens_per_second', 0.0):.0f}"}
            self.progress.advance(state.global_step - self.first - self.progress.done, **facts)


class DivergenceWatch(TrainerCallback):  # type: ignore[misc]
    """Says once when the loss runs away, and ends the run where it was told to, or where the loss is no number.

    Args:
        stop: whether a loss that runs away ends the run.
        advice: what the settings would best be changed to.
    """

    def __init__(self, *, stop: bool, advice: str) -> None:
        self.stop, self.advice = stop, advice
        self.found = ""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log = state.log_history
        found = divergence(log if len(log) <= 2 * WATCHED else [*log[:WATCHED], *log[-WATCHED:]])
        if found is None:
            return
        if not self.found:
            say("train", f"{found.text}: {self.advice}")
        self.found = self.found or found.text
        control.should_training_stop = control.should_training_stop or self.stop or found.hopeless


class PagingWatch(TrainerCallback):  # type: ignore[misc]
    """Says when a paged optimizer has slowed the run: a page that moves between host and device holds every step up."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rates = [entry["tokens_per_second"] for entry in state.log_history if "tokens_per_second" in entry]
        if text := slowed(rates):
            say("train", text)


def slowed(rates: Sequence[float]) -> str:
    """What to say of a throughput that fell while training; empty when it did not.

    Args:
        rates: tokens per second of each logged step; the first is left out, for it warms up.
    """
    if len(rates) < 2 * PAGING_STEPS + 1:
        return ""
    first, last = median(rates[1 : PAGING_STEPS + 1]), median(rates[-PAGING_STEPS:])
    if last >= PAGING_SHARE * first:
        return ""
    return (
        f"throughput fell from {first:.0f} to {last:.0f} tokens/s with a paged optimizer: its states are being moved "
        "between host and device; make the run fit with a smaller batch or gradient_checkpointing"
    )
