"""The policy: what must be shown before a model is promoted. Parsed strictly: what is not understood is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunegate.contracts.champion import CHAMPION_ROLES
from tunegate.contracts.errors import PolicyError, SettingsError
from tunegate.contracts.files import sha256_json
from tunegate.contracts.settings import parse_settings, setting
from tunegate.gate.serving import ServingRule

#: The evaluations of a run, in the order in which the models come about.
ROLES = ("base", "merged", "quantized")

#: What to do with a comparison with the champion while the alias points at nothing.
NO_CHAMPION = ("fail", "pass")

#: After this many judgements of models that each lie at a margin, one false promotion is to be expected at 95 %
#: confidence (1 / 0.05, Bonferroni); of models that learnt from the verdicts before, sooner (Dwork et al. 2015).
MAX_JUDGEMENTS = 20

#: Below this many rows a slice tells nothing: five rows that get worse for another reason are a quarter of it.
MIN_SLICE_ROWS = 20

Kind = Literal["margin", "required_gain", "floor", "ceiling"]
_COMPARISONS: tuple[Kind, ...] = ("margin", "required_gain")
_LIMITS: tuple[Kind, ...] = ("floor", "ceiling")

#: The pairs that parity compares: (reference, candidate).
PARITY_PAIRS = (("adapter", "merged"), ("merged", "quantized"), ("adapter", "quantized"))


@dataclass(frozen=True)
class OverlapLimits:
    """How many evaluation rows may also be among the train rows."""

    exact: int = setting(0, help="identical rows allowed on both sides", unit="rows", minimum=0)
    near: int = setting(0, help="nearly identical rows allowed on both sides", unit="rows", minimum=0)


@dataclass(frozen=True)
class Rule:
    """One line of ``checks``: a comparison (``reference`` with ``margin`` or ``required_gain``) or a limit."""

    task: str = setting(help="name of the task in the evaluation")
    metric: str = setting(help="name of the per-row metric")
    candidate: str = setting(help="the model that is judged", choices=("merged", "quantized"))
    reference: str = setting(
        "", help="the model it is compared with, on the same rows", choices=("", *ROLES, *CHAMPION_ROLES)
    )
    margin: float | None = setting(None, help="the mean may be worse than the reference's by less than this", minimum=0)
    required_gain: float | None = setting(
        None, help="the mean must be better than the reference's by at least this", minimum=0
    )
    floor: float | None = setting(None, help="the mean must be at least this")
    ceiling: float | None = setting(None, help="the mean must be at most this")
    score_range: tuple[float, ...] | None = setting(
        None, help="[lowest, highest] possible score of a row; without it scores must be 0 or 1"
    )
    max_row_loss: float | None = setting(
        None,
        help="no row, seen or not, gets worse by more than this: assumed by the bound, which gets much tighter; "
        "a row that does fails the check",
        exclusive_minimum=0,
    )
    direction: str = setting("higher", help="which scores are better, in a comparison", choices=("higher", "lower"))
    slice: str = setting("", help="judge only the rows that carry this tag; all rows otherwise")

    @property
    def kind(self) -> Kind:
        """Which of the four it asks for."""
        return next(kind for kind in (*_COMPARISONS, *_LIMITS) if getattr(self, kind) is not None)

    @property
    def limit(self) -> float:
        """The number it asks for."""
        return float(getattr(self, self.kind))

    @property
    def width(self) -> float:
        """How far apart two scores of a row can be."""
        low, high = self.score_range or (0.0, 1.0)
        return high - low

    @property
    def compares(self) -> bool:
        """Whether it needs a reference."""
        return self.kind in _COMPARISONS

    @property
    def name(self) -> str:
        """The rule in a few words: ``tool_call.exact: quantized against merged``."""
        against = f"{self.candidate} against {self.reference}" if self.compares else self.candidate
        where = f" in {self.slice}" if self.slice else ""
        return f"{self.task}.{self.metric}{where}: {against} ({self.kind.replace('_', ' ')} {self.limit:g})"


@dataclass(frozen=True)
class ParityRule:
    """One line of ``parity``: how far a model may be from the one it was made from, token by token."""

    candidate: str = setting(help="the model that is judged", choices=("merged", "quantized"))
    reference: str = setting(help="the model it was made from", choices=("adapter", "merged"))
    max_mean_kl: float | None = setting(
        None, help="mean divergence of the candidate from the reference", unit="nats a token", exclusive_minimum=0
    )
    max_token_kl: float | None = setting(
        None, help="divergence of the token that differs most", unit="nats", exclusive_minimum=0
    )
    min_top1_agreement: float | None = setting(None, help="share of tokens that both would write", minimum=0, maximum=1)
    max_layer_error: float | None = setting(
        None, help="relative error of the states behind the decoder layer where it is largest", exclusive_minimum=0
    )

    @property
    def pair(self) -> str:
        """How the report calls the pair."""
        return f"{self.candidate} against {self.reference}"

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set: name → number."""
        return {name: value for name in PARITY_LIMITS if (value := getattr(self, name)) is not None}


#: Limit → the figure of the report that it is held against.
PARITY_LIMITS: Mapping[str, str] = {
    "max_mean_kl": "mean_kl",
    "max_token_kl": "max_token_kl",
    "min_top1_agreement": "top1_agreement",
    "max_layer_error": "max_layer_error",
}


@dataclass(frozen=True)
class Policy:
    """The whole policy."""

    checks: tuple[Rule, ...]
    confidence: float
    max_overlap_rows: OverlapLimits
    parity: tuple[ParityRule, ...] = ()
    serving: ServingRule | None = None
    when_no_champion: str = NO_CHAMPION[0]
    min_slice_rows: int = MIN_SLICE_ROWS
    max_judgements: int = MAX_JUDGEMENTS

    @property
    def alpha(self) -> float:
        """The error rate of each one-sided bound."""
        return 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        """The policy with every default written out."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """sha256 of :meth:`to_json`: policies that ask for the same have the same digest."""
        return sha256_json(self.to_json())


@dataclass(frozen=True)
class _Document:
    checks: tuple[Any, ...] = setting(help="the list of checks")
    confidence: float = setting(0.95, help="of each one-sided bound", minimum=0.8, maximum=0.999)
    max_overlap_rows: Mapping[str, Any] = setting(default_factory=dict, help="exact, near: rows allowed on both sides")
    parity: tuple[Any, ...] = setting((), help="the list of limits on how far merging and quantizing may move a model")
    serving: Mapping[str, Any] | None = setting(None, help="how closely what serves must answer as what was evaluated")
    when_no_champion: str = setting(
        NO_CHAMPION[0], help="how a comparison with a champion ends while there is none", choices=NO_CHAMPION
    )
    min_slice_rows: int = setting(MIN_SLICE_ROWS, help="slices of fewer rows decide nothing", unit="rows", minimum=1)
    max_judgements: int = setting(
        MAX_JUDGEMENTS, help="warn when the evaluation rows have judged more often than this", minimum=1
    )


def parse_policy(document: Mapping[str, Any]) -> Policy:
    """Parses a policy.

    Args:
        document: the mapping of a YAML file.

    Raises:
        PolicyError: for an unknown key (naming the nearest), a check that asks for nothing or for two things, a policy
            without checks, or one that never compares the quantized model, which is what is served; for a limit on a
            pair that is not compared.
    """
    try:
        top = parse_settings(_Document, document, where="policy")
        overlap = parse_settings(OverlapLimits, top.max_overlap_rows, where="policy.max_overlap_rows")
        rules = tuple(
            parse_settings(Rule, check, where=f"policy.checks[{index}]") for index, check in enumerate(top.checks)
        )
        parity = tuple(
            parse_settings(ParityRule, rule, where=f"policy.parity[{index}]") for index, rule in enumerate(top.parity)
        )
        serving = None if top.serving is None else parse_settings(ServingRule, top.serving, where="policy.serving")
    except SettingsError as error:
        raise PolicyError(
            error.failed, seen=error.seen, expected=error.expected, remedy=error.remedy, items=error.items
        ) from error
    for index, rule in enumerate(rules):
        _check_rule(rule, f"policy.checks[{index}]")
    _check_whole(rules)
    _check_parity(parity)
    return Policy(
        rules,
        top.confidence,
        overlap,
        parity,
        serving,
        when_no_champion=top.when_no_champion,
        min_slice_rows=top.min_slice_rows,
        max_judgements=top.max_judgements,
    )


def _check_rule(rule: Rule, where: str) -> None:
    kinds = [kind for kind in (*_COMPARISONS, *_LIMITS) if getattr(rule, kind) is not None]
    problem, remedy = "", f"correct {where}"
    if len(kinds) != 1:
        asked = " and ".join(kinds) or "nothing"
        problem = f"it asks for {asked}; a check asks for one of margin, required_gain, floor, ceiling"
    elif rule.compares and not rule.reference:
        problem = f"{rule.kind} needs a reference"
    elif rule.reference and not rule.compares:
        problem = f"{rule.kind} is absolute and takes no reference"
    elif rule.direction != "higher" and not rule.compares:
        problem = f"{rule.kind} is on the score itself, whichever is better, and takes no direction"
    elif rule.reference == rule.candidate:
        problem = f"{rule.candidate} is compared with itself"
    elif rule.margin == 0:
        problem = "margin 0 cannot be shown by any number of equal rows; allow some loss, or use required_gain: 0"
    elif rule.score_range is not None and (len(rule.score_range) != 2 or rule.score_range[0] >= rule.score_range[1]):
        problem = f"score_range {list(rule.score_range)} is not [lowest, highest]"
    elif rule.max_row_loss is not None and (rule.score_range is None or not rule.compares):
        problem = "max_row_loss belongs to a comparison of scores with a score_range"
    elif rule.compares and rule.limit >= rule.width:
        problem, remedy = _beyond_all_scores(rule)
    if problem:
        raise PolicyError(
            f"{where} cannot be judged.",
            seen=problem,
            expected="{task: tool_call, metric: exact, candidate: quantized, reference: merged, margin: 0.1}",
            remedy=remedy,
        )


def _beyond_all_scores(rule: Rule) -> tuple[str, str]:
    """What is wrong with a loss that no model can exceed, or a gain that none can show, and what was likely meant."""
    meant = rule.limit * rule.width / 100  # a percentage
    beyond = "a model that gets every row wrong would pass" if rule.kind == "margin" else "no model could show it"
    guess = f"did you mean {rule.kind}: {meant:g}? If not, " if meant < rule.width else ""
    problem = f"{rule.kind}: {rule.limit:g}, while scores are at most {rule.width:g} apart: {beyond}"
    return problem, f"{guess}lower it, or state the score_range of {rule.metric}"


def _check_whole(rules: tuple[Rule, ...]) -> None:
    subjects = Counter((r.task, r.metric, r.candidate, r.reference, r.kind, r.slice) for r in rules)
    twice = [" ".join(filter(None, subject)) for subject, count in subjects.items() if count > 1]
    if not rules:
        seen, remedy = "no checks", "add checks: a policy that asks for nothing would promote anything"
    elif twice:
        seen, remedy = "the same check more than once", "keep one of them"
    elif not any(rule.candidate == "quantized" and rule.reference in ROLES and not rule.slice for rule in rules):
        seen = "no comparison of the quantized model with another of its run"
        remedy = "add a check with candidate: quantized, reference: merged and a margin: quantized is what is served"
    else:
        return
    raise PolicyError(
        "The policy cannot be judged.",
        seen=seen,
        expected="different checks, at least one of which compares the quantized model with base or merged on all rows",
        remedy=remedy,
        items=twice,
    )


def _check_parity(rules: tuple[ParityRule, ...]) -> None:
    pairs = Counter(rule.pair for rule in rules)
    for index, rule in enumerate(rules):
        problem = ""
        if (rule.reference, rule.candidate) not in PARITY_PAIRS:
            problem = f"{rule.pair} is not compared"
        elif not rule.limits:
            problem = "it sets no limit"
        elif pairs[rule.pair] > 1:
            problem = f"{rule.pair} more than once"
        if problem:
            raise PolicyError(
                f"policy.parity[{index}] cannot be judged.",
                seen=problem,
                expected="{reference: merged, candidate: quantized, max_mean_kl: 0.05}: each pair once, with limits of "
                + ", ".join(PARITY_LIMITS),
                remedy=f"correct policy.parity[{index}]",
            )
