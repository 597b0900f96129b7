"""How often the gate promotes what it should not, and what it should: against a plain threshold and "not significant".

Every figure is a sum over the whole distribution of outcomes, not a simulation; tests/gate/test_error_rates.py draws
the same models and finds the same.

    python tests/benchmarks/bench_gate.py gate.html
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binom, norm

from tunegate.gate.bounds import tango_score
from tunegate.gate.exact import power
from tunegate.pages.charts import line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import table

ALPHA, MARGIN, DISCORDANCE = 0.05, 0.1, 0.2
ROWS = (30, 60, 100, 200, 400, 1000)
TRUTHS = (0.0, -0.02, -0.05, -0.1)

Passes = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def threshold(gains: np.ndarray, losses: np.ndarray, rows: int) -> np.ndarray:
    """Passes what is seen to lose less than the margin."""
    return (gains - losses) / rows > -MARGIN


def not_significant(gains: np.ndarray, losses: np.ndarray, rows: int) -> np.ndarray:
    """Passes what McNemar's two-sided test does not call worse."""
    differ = gains + losses
    p_value = np.minimum(1.0, 2 * binom.cdf(np.minimum(gains, losses), differ, 0.5))
    return (p_value > ALPHA) | (gains >= losses)


def tango(gains: np.ndarray, losses: np.ndarray, rows: int) -> np.ndarray:
    """Passes by Tango's asymptotic bound."""
    return tango_score(gains, losses, rows, -MARGIN) > norm.ppf(1 - ALPHA)


def summed(passes: Passes, rows: int, truth: float) -> float:
    """How probable it is that a rule passes a model whose true difference is ``truth``."""
    gain, loss = (DISCORDANCE + truth) / 2, (DISCORDANCE - truth) / 2
    counts = np.arange(rows + 1)
    lost, won = np.meshgrid(counts, counts, indexing="ij")
    chance = binom.pmf(lost, rows, loss) * binom.pmf(won, rows - lost, gain / (1 - loss))
    inside = won + lost <= rows
    return float((chance * inside * passes(won, lost, rows)).sum())


def gate(rows: int, truth: float) -> float:
    """The same of what decides in the gate."""
    return power(rows, -MARGIN, truth=truth, discordance=DISCORDANCE, alpha=ALPHA)


RULES: dict[str, Callable[[int, float], float]] = {
    "tunegate": gate,
    "Tango's bound": lambda rows, truth: summed(tango, rows, truth),
    "plain threshold": lambda rows, truth: summed(threshold, rows, truth),
    "not significant": lambda rows, truth: summed(not_significant, rows, truth),
}


def main(output: Path) -> None:
    """Prints the tables and writes the page with the curves."""
    columns = ["true difference", "rule", *(f"{rows} rows" for rows in ROWS)]
    body = [
        [f"{truth:+g}", name, *(f"{rule(rows, truth):.1%}" for rows in ROWS)]
        for truth in TRUTHS
        for name, rule in RULES.items()
    ]
    for line in (columns, ["---"] * len(columns), *body):
        print(f"| {' | '.join(line)} |")
    losses = [step / 100 for step in range(19)]
    sections = [
        Section(
            f"How often a model is promoted, at {rows} rows",
            line_chart(
                {name: [(loss, rule(rows, -loss)) for loss in losses] for name, rule in RULES.items()},
                x="true loss of the candidate",
                y="P(PASS)",
            ),
            f"Margin {MARGIN}, {DISCORDANCE:.0%} of the rows differ, {1 - ALPHA:.0%} confidence: from {MARGIN} on "
            f"every promotion is false, and at most {ALPHA:.0%} may be.",
        )
        for rows in (60, 200)
    ]
    sections.append(Section("P(PASS)", table(columns, body)))
    html = page("What the gate promises", sections, subtitle="Against a plain threshold and 'not significant'")
    output.write_text(html, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("gate.html"))
