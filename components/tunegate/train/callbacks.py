"""Progress of a training run."""

from __future__ import annotations

import time
from typing import Any

from tunegate.contracts.progress import Progress, say


def progress_callback() -> Any:
    """A trainer callback that prints steps, loss, tokens/s and time left, and each validation loss."""
    from transformers import TrainerCallback

    class _Progress(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.progress: Progress | None = None
            self.start = 0.0
            self.facts: dict[str, str] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.progress = Progress("train", state.max_steps, "steps")
            self.start = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            logs = logs or {}
            if "eval_loss" in logs:
                say("train", f"validation loss {logs['eval_loss']:.4f} at step {state.global_step}")
            if "loss" not in logs or self.progress is None:
                return
            self.facts = {"loss": f"{logs['loss']:.3f}"}
            if "num_tokens" in logs:
                self.facts["tokens/s"] = f"{logs['num_tokens'] / max(time.monotonic() - self.start, 1e-9):.0f}"
            self.progress.advance(state.global_step - self.progress.done, **self.facts)

    return _Progress()
