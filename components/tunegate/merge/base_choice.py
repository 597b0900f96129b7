"""Which of two merged models has the lower loss, on the same rows: original must show it, or dequantized it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.merge.settings import DEQUANTIZED, ORIGINAL

#: The confidence at which ``original`` must be shown to be better.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class BaseChoice:
    """What was chosen, and on what.

    Attributes:
        chosen: ``original`` or ``dequantized``.
        difference: mean over rows of loss(dequantized) − loss(original), in nats a token; above 0 original is better.
        lower, upper: its one-sided bounds, each at :data:`CONFIDENCE`; None for fewer than two rows.
    """

    chosen: str
    difference: float
    lower: float | None
    upper: float | None


def choose_base(dequantized: Sequence[float], original: Sequence[float]) -> BaseChoice:
    """Chooses by Student's paired t (Biometrika 6, 1908): its lower bound for the mean difference must be above 0.

    The rows are a sample of what will be asked, and a row's loss is a mean over its tokens, so the mean over rows is
    close to normal. A tie, too few rows and a difference that chance explains go to ``dequantized``: it is what the
    adapter was trained on.

    Args:
        dequantized, original: loss of each row in nats a token, the same rows in the same order.
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(dequantized, original, strict=True)]
    rows = len(differences)
    mean = math.fsum(differences) / rows
    if rows < 2:
        return BaseChoice(DEQUANTIZED, mean, None, None)
    variance = math.fsum((value - mean) ** 2 for value in differences) / (rows - 1)
    reach = float(t.ppf(CONFIDENCE, rows - 1)) * math.sqrt(variance / rows)
    return BaseChoice(ORIGINAL if mean - reach > 0 else DEQUANTIZED, mean, mean - reach, mean + reach)
