"""What a cut adapter loses: how far the model's next-token distributions move on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import read_json_lines
from tunegate.contracts.progress import Progress
from tunegate.models.chat import render, render_text
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.models.quiet import quiet

#: How many validation rows are looked at, and how many tokens of each: the last ones, which hold the answer.
PROBE_ROWS, PROBE_TOKENS = 32, 512


@dataclass(frozen=True)
class Loss:
    """The distance between the model with the exact adapter and with the cut one.

    Attributes:
        rows: how many rows were looked at.
        tokens: how many of their tokens were predicted: those of the answers, or all of a text.
        kl_mean: KL divergence of the cut adapter's distribution from the exact one's, in nats a token.
        kl_max: the largest of a token.
        top1_agreement: the share of tokens for which both find the same token likeliest.
    """

    rows: int
    tokens: int
    kl_mean: float
    kl_max: float
    top1_agreement: float


def measure_loss(base_model: Path, *, exact: Path, reduced: Path, dataset: Path) -> Loss:
    """Runs both adapters on one loaded base over rows that were not trained on.

    Args:
        base_model: the base of both.
        exact: the adapter as plain LoRA, nothing cut.
        reduced: the cut one.
        dataset: a ``dataset`` artifact, whose validation rows are taken in the order of their ids.

    Raises:
        DataError: when there is no row.
    """
    import torch
    from peft import PeftModel

    tokenizer = load_tokenizer(base_model)
    rows = sorted(read_json_lines(dataset / "validation.jsonl"), key=lambda row: str(row["id"]))[:PROBE_ROWS]
    probes = [_probe(tokenizer, row) for row in rows]
    if not probes:
        raise DataError(
            "There is no row to measure the loss on.",
            seen=f"no row in {dataset / 'validation.jsonl'}",
            expected="validation rows, which the adapter was not trained on",
            remedy="prepare the data set with a validation_fraction above 0",
        )
    with quiet():
        model = PeftModel.from_pretrained(load_causal_lm(base_model), str(exact), adapter_name="exact")
        model.load_adapter(str(reduced), adapter_name="reduced")
    model.eval()
    divergences, agreements = [], []
    progress = Progress("export", len(probes), "rows measured")
    for ids, start in probes:
        with torch.no_grad():
            before, after = (_log_probabilities(model, name, ids, start) for name in ("exact", "reduced"))
        divergences.append((before.exp() * (before - after)).sum(-1))
        agreements.append(before.argmax(-1) == after.argmax(-1))
        progress.advance()
    divergence, agreement = torch.cat(divergences).clamp(min=0), torch.cat(agreements)
    return Loss(
        rows=len(probes),
        tokens=len(divergence),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        top1_agreement=float(agreement.double().mean()),
    )


def _probe(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], int]:
    """A row's last tokens, and the place of the first that is to be predicted."""
    if "text" in row:
        ids = render_text(tokenizer, row["text"])
        predicted = len(ids)
    else:
        rendered = render(tokenizer, row["prompt"], row["completion"])
        ids = [*rendered.prompt_ids, *rendered.completion_ids]
        predicted = len(rendered.completion_ids)
    ids = ids[-PROBE_TOKENS:]
    return ids, max(1, len(ids) - predicted)


def _log_probabilities(model: Any, adapter: str, ids: list[int], start: int) -> Any:
    """``predicted tokens × vocabulary`` in float64, with one of the loaded adapters."""
    import torch

    model.set_adapter(adapter)
    logits = model(torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
    return logits.double().log_softmax(-1)
