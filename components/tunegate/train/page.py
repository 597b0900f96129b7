"""The loss-curve page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.pages.charts import line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.train.ranks_page import rank_listing, rank_picture

_SHOWN = ("method", "r", "lora_alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed")

#: Those of them that full fine-tuning takes no notice of.
_OF_ADAPTERS = ("r", "lora_alpha")

_PENALTY = "‖PᵀP − I‖² + ‖QQᵀ − I‖², averaged over the modules, before its weight. It is no part of the losses above."

_THROUGHPUT = "Tokens of the rows, labelled or not; there is no padding. Without validation and checkpoints."


def curves_page(training: Mapping[str, Any], throughput: Sequence[Mapping[str, float]] = ()) -> str:
    """Loss, learning rate, gradient norm and throughput over the optimizer steps.

    Args:
        training: ``training.json``.
        throughput: ``step`` and ``tokens_per_second`` of each step.
    """
    history: Sequence[Mapping[str, float]] = training["history"]

    def curve(name: str) -> list[tuple[float, float]]:
        return [(point["step"], point[name]) for point in history if name in point]

    rates = [(point["step"], point["tokens_per_second"]) for point in throughput]
    sections = [
        *([Section("Advice", "".join(paragraph(text) for text in training["advice"]))] if training["advice"] else []),
        Section("The run", facts({**training["summary"], **_shown(training["settings"])})),
        Section(
            "Loss",
            line_chart({"train": curve("loss"), "validation": curve("eval_loss")}, x="optimizer step", y="loss"),
            "Cross-entropy per completion token, in nats. Validation at step 0 is the untrained base.",
        ),
        *rank_picture(training),
        *_penalty(curve("orthogonality")),
        Section("Learning rate", line_chart({"learning rate": curve("learning_rate")}, x="optimizer step", y="rate")),
        Section("Gradient norm", line_chart({"gradient norm": curve("grad_norm")}, x="optimizer step", y="norm")),
        *(
            [Section("Throughput", line_chart({"tokens/s": rates}, x="optimizer step", y="tokens/s"), _THROUGHPUT)]
            if rates
            else []
        ),
        Section(
            "Validation",
            table(["step", "validation loss"], [[int(s), v] for s, v in curve("eval_loss")]),
        ),
        *rank_listing(training),
    ]
    return page("Training", sections, subtitle=training["settings"]["method"])


def _penalty(points: Sequence[tuple[float, float]]) -> list[Section]:
    chart = line_chart({"penalty": points}, x="optimizer step", y="penalty")
    return [Section("Orthogonality", chart, _PENALTY)] if points else []


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = _SHOWN if settings["method"] != "full" else [name for name in _SHOWN if name not in _OF_ADAPTERS]
    return {name: settings[name] for name in names}
