"""What a cut adapter loses: how far the model's next-token distributions move on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.likelihood import score, token_kl
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.models.probe import ProbeRow, read_probe
from tunegate.models.quiet import quiet

#: How many validation rows are looked at, up to how many tokens of each, and of how many of its answer.
PROBE_ROWS, PROBE_LENGTH, PROBE_TOKENS = 32, 1024, 512


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
    import numpy as np
    from peft import PeftModel

    probe = read_probe(
        dataset,
        load_tokenizer(base_model),
        rows=PROBE_ROWS,
        max_length=PROBE_LENGTH,
        max_scored_tokens=PROBE_TOKENS,
    )
    with quiet():
        model = PeftModel.from_pretrained(load_causal_lm(base_model), str(exact), adapter_name="exact")
        model.load_adapter(str(reduced), adapter_name="reduced")
    model.eval()
    divergences, agreements = [], []
    progress = Progress("export", len(probe.rows), "rows measured")
    for row in probe.rows:
        before, after = (_log_probabilities(model, name, row) for name in ("exact", "reduced"))
        divergences.append(token_kl(before, after))
        agreements.append(before.argmax(-1) == after.argmax(-1))
        progress.advance()
    divergence = np.concatenate(divergences).clip(min=0)
    return Loss(
        rows=len(probe.rows),
        tokens=probe.scored_tokens,
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        top1_agreement=float(np.concatenate(agreements).mean()),
    )


def _log_probabilities(model: Any, adapter: str, row: ProbeRow) -> Any:
    """``scored tokens × vocabulary`` with one of the loaded adapters."""
    model.set_adapter(adapter)
    (scored,) = score(model, [row], batch_size=1)
    return scored.log_probs
