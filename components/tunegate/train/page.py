"""The loss-curve page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.pages.charts import line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table

_SHOWN = ("method", "r", "lora_alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed")


def curves_page(training: Mapping[str, Any]) -> str:
    """Loss, learning rate and gradient norm over the optimizer steps of ``training.json``."""
    history: Sequence[Mapping[str, float]] = training["history"]

    def curve(name: str) -> list[tuple[float, float]]:
        return [(point["step"], point[name]) for point in history if name in point]

    sections = [
        Section("The run", facts({**training["summary"], **{k: training["settings"][k] for k in _SHOWN}})),
        Section(
            "Loss",
            line_chart({"train": curve("loss"), "validation": curve("eval_loss")}, x="optimizer step", y="loss"),
            "Cross-entropy per completion token, in nats. Validation at step 0 is the untrained base.",
        ),
        Section("Learning rate", line_chart({"learning rate": curve("learning_rate")}, x="optimizer step", y="rate")),
        Section("Gradient norm", line_chart({"gradient norm": curve("grad_norm")}, x="optimizer step", y="norm")),
        Section(
            "Validation",
            table(["step", "validation loss"], [[int(s), v] for s, v in curve("eval_loss")]),
        ),
    ]
    return page("Training", sections, subtitle=f"{training['settings']['method']} adapter")
