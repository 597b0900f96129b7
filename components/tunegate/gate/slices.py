"""Slices: rows that carry a tag, each judged by the margins that hold for all rows.

A slice that the policy names is a check like any other. Those that it does not name are watched: every one of enough
rows, in every comparison with a margin, corrected together (Holm). They can fail a verdict and never help it to pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.contracts.verdict import Check
from tunegate.gate.comparison import compare, enough_p_value, holm
from tunegate.gate.judge import Judged, Paired, judge_pair
from tunegate.gate.rows import in_slice

RULE = "no slice that the policy does not name loses more than its margin"


@dataclass(frozen=True)
class Watched:
    """What came of the slices that the policy does not name.

    Attributes:
        broken: a FAIL for each slice and comparison that is shown to lose more than the margin.
        check: that there is none; None where there is one, or nothing was watched.
    """

    broken: tuple[Judged, ...] = ()
    check: Check | None = None


def watch_slices(pairs: Sequence[Paired], *, alpha: float, min_rows: int) -> Watched:
    """Watches every slice of every comparison that has a margin.

    Args:
        pairs: the policy's comparisons, those of slices that it names included.
        alpha: how probable it may be that any slice is called broken while none is.
        min_rows: slices of fewer rows are not watched.
    """
    cells = [
        (pair, tag)
        for pair in pairs
        if pair.rule.kind == "margin" and not pair.rule.slice
        for tag in _unnamed(pair, pairs, min_rows)
    ]
    if not cells:
        return Watched()
    found = [_of_slice(pair, tag) for pair, tag in cells]
    refuted = holm([enough_p_value(part.rule, part.sample, alpha=alpha) for part in found], alpha=alpha)
    broken = tuple(
        judge_pair(dataclasses.replace(part, compared=compare(part.rule, part.sample, alpha=alpha)), alpha, worse=True)
        for part, is_broken in zip(found, refuted, strict=True)
        if is_broken
    )
    if broken:
        return Watched(broken)
    tags, rules = len({tag for _, tag in cells}), len({pair.rule for pair, _ in cells})
    told = f"{tags} slices of at least {min_rows} rows in {rules} comparisons, corrected together"
    return Watched(check=Check(RULE, "PASS", f"none of {told}"))


def _unnamed(pair: Paired, pairs: Sequence[Paired], min_rows: int) -> list[str]:
    """The tags of enough rows, and not of all, for which the policy has no check of its own."""
    rule = pair.rule
    named = {
        other.rule.slice for other in pairs if dataclasses.replace(other.rule, slice="", margin=rule.margin) == rule
    }
    counts: dict[str, int] = {}
    for tags in pair.candidate.tags:
        for tag in set(tags):
            counts[tag] = counts.get(tag, 0) + 1
    whole = len(pair.candidate.tags)
    return sorted(tag for tag, count in counts.items() if min_rows <= count < whole and tag not in named)


def _of_slice(pair: Paired, tag: str) -> Paired:
    candidate, reference = in_slice(pair.candidate, tag), in_slice(pair.reference, tag)
    inside = [i for i, tags in enumerate(pair.candidate.tags) if tag in tags]
    return Paired(dataclasses.replace(pair.rule, slice=tag), candidate, reference, pair.gains[inside], pair.compared)
