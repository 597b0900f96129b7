"""What a policy can show with the rows there are, computed before anything is run."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from tunegate.gate.exact import power
from tunegate.gate.policy import Policy, Rule

#: Share of the rows in which a model and its reference are taken to differ: what quantizing the demo's model does is
#: 6 %, and models that were tuned anew differ in more.
ASSUMED_DISCORDANCE = 0.1

#: How often an equal model should pass (J. Cohen, Statistical power analysis for the behavioral sciences, 1988).
WANTED_POWER = 0.8


@dataclass(frozen=True)
class Detection:
    """What the rows can show of one check.

    Attributes:
        rule: the check.
        rows: how many rows it will have.
        discordance: share of the rows in which the models are taken to differ.
        passes_equal: P(PASS) of a model that is truly equal.
        passes_half: P(PASS) of one that truly loses half of the margin.
        rows_wanted: about how many rows let an equal model pass with :data:`WANTED_POWER`.
    """

    rule: Rule
    rows: int
    discordance: float
    passes_equal: float
    passes_half: float
    passes_whole: float
    rows_wanted: int

    @property
    def too_few(self) -> bool:
        """Whether an equal model would too often not pass."""
        return self.passes_equal < WANTED_POWER

    def told(self) -> str:
        """The same in a sentence."""
        return (
            f"{self.rule.name}: with {self.rows} rows, {self.discordance:.0%} of which differ, an equal model passes "
            f"{self.passes_equal:.0%} of the time, one that loses half the margin {self.passes_half:.0%}, and one that "
            f"loses the whole margin {self.passes_whole:.1%}"
        )


def detections(policy: Policy, rows: int) -> list[Detection]:
    """What can be said of each margin on scores of 0 and 1 and on all rows: of other scores nothing is known before."""
    return [_detection(rule, rows, policy.alpha) for rule in policy.checks if can_be_said(rule)]


def can_be_said(rule: Rule) -> bool:
    """Whether a check's power follows from the number of rows alone."""
    return rule.kind == "margin" and rule.score_range is None and not rule.slice


def _detection(rule: Rule, rows: int, alpha: float) -> Detection:
    margin = rule.limit
    differing = max(ASSUMED_DISCORDANCE, margin)

    def passes(truth: float) -> float:
        return power(rows, -margin, truth=truth, discordance=differing, alpha=alpha)

    normal = NormalDist()
    needed = (normal.inv_cdf(1 - alpha) + normal.inv_cdf(WANTED_POWER)) ** 2 * differing / margin**2
    return Detection(rule, rows, differing, passes(0.0), passes(-margin / 2), passes(-margin), round(needed) + 1)
