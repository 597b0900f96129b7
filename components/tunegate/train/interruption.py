"""A request to stop, answered at the end of a training step."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from tunegate.train.checkpoints import Checkpoints

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ValidationStopped(Exception):
    """Leaves a validation: it may take longer than the time that is left. The next attempt makes up for it."""


class Interruption:
    """While it is entered, SIGTERM and SIGINT are remembered rather than obeyed: a step is not torn apart."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:  # a person who asks twice will not wait
            raise KeyboardInterrupt
        if not self.requested:  # written past Python's buffers: a handler may come in the middle of another print
            os.write(1, f"[train] {signal.Signals(number).name}: stopping at the end of this step\n".encode())
        self.requested = True


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]
    """Asks the trainer for a checkpoint every so often and before a stop, and keeps what it wrote.

    Args:
        checkpoints: where they are kept; None: nowhere, and the trainer is never asked.
        every_seconds: the time between two, measured from the end of one to the start of the next.
        interruption: whether to stop.
    """

    def __init__(self, checkpoints: Checkpoints | None, *, every_seconds: float, interruption: Interruption) -> None:
        self.checkpoints, self.every_seconds, self.interruption = checkpoints, every_seconds, interruption
        self.kept_step: int | None = None
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = time.monotonic() - self._last >= self.every_seconds and state.global_step < state.max_steps
        if self.interruption.requested:
            self._stop(control)
        elif self.checkpoints is not None and due:
            control.should_save = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interruption.requested:
            self._stop(control)
            raise ValidationStopped

    def _stop(self, control: Any) -> None:
        control.should_save = self.checkpoints is not None
        control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._last = time.monotonic()
        if not folder.is_dir():  # it could not be written, and that was said
            return
        if self.checkpoints is not None and self.checkpoints.keep(folder, state.global_step):
            self.kept_step = state.global_step
        shutil.rmtree(folder)
        self._last = time.monotonic()
