"""The policy of a first recipe: what must be shown on the held-out rows, in numbers that they can decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.evaluate.documents import COMPLETION_PERPLEXITY
from tunegate.models.tool_calls import TOOL_CALL
from tunegate_pipelines.init.asked import TaskRows
from tunegate_pipelines.init.chosen import (
    CONFIDENCE,
    MAX_ROW_LOSS,
    NAT_RANGE,
    REQUIRED_GAIN,
    Chosen,
    gains_needed,
    margin,
    nat_margin,
)
from tunegate_pipelines.init.commented import Entry

#: About so many held-out rows are the fewest that can show the widest margin.
_FEWEST = 25

#: What share of answers must at least be of the right form, whatever the base's were.
_VALID = 0.9


@dataclass(frozen=True)
class Judged:
    """What the policy asks by.

    Attributes:
        task, metric: what is compared.
        rows: how many rows it has.
        margin: what may be lost.
        likelihood: whether the metric is one, lower being better; otherwise it is right or wrong.
    """

    task: str
    metric: str
    rows: int
    margin: float
    likelihood: bool


def judged_by(task: TaskRows | None, chosen: Chosen, *, calls: bool) -> Judged:
    """The task and metric of the policy, with a margin that its rows can show.

    Raises:
        DataError: for rows that can show none.
    """
    name = task.name if task else TOOL_CALL if calls else COMPLETION_PERPLEXITY
    likelihood = task.type == "perplexity" if task else not calls
    rows = len(task.rows) if task else chosen.asked
    loss = (nat_margin if likelihood else margin)(rows) if rows else None
    if loss is None:
        held, share = chosen.of("evaluation"), chosen.prepare.evaluation_fraction
        raise DataError(
            "The rows are too few to judge a model by.",
            seen=f"{rows} rows to ask ({len(held)} held out, of {len(chosen.rows)} that differ)",
            expected=f"at least {_FEWEST}: fewer cannot show that a model is as good as another",
            remedy=f"give about {round(_FEWEST / share)} different rows or more",
        )
    return Judged(name, "nll" if likelihood else "exact", rows, loss, likelihood)


def policy_entries(judged: Judged, chosen: Chosen, *, valid: bool, served: bool, full: bool) -> list[Entry]:
    """The policy, entry by entry.

    Args:
        judged: what it asks by.
        chosen: the numbers of the recipe.
        valid: whether the task says of an answer that it is of the right form.
        served: whether the run asks the serving engine.
        full: whether every weight is tuned, so that no adapter is compared.
    """
    checks = [_gain(judged), _kept(judged), *([_form(judged)] if valid else []), *_likelihood(judged, chosen)]
    entries = [
        Entry(
            "confidence", CONFIDENCE, "Of each one-sided bound: 1 in 20 models that are just too bad passes a check."
        ),
        Entry("checks", [*checks, _champion(judged)], "All must hold. A check asks for one thing."),
        Entry(
            "when_no_champion",
            "pass",
            "While the alias points at nothing there is no champion: pass lets the first model through on the other "
            "checks. Take it out when the first one is promoted.",
        ),
        Entry(
            "max_overlap_rows",
            {"exact": 0, "near": 0},
            "Held-out rows that may also be among the rows that were trained on. Anything above 0 is judging memory.",
        ),
        Entry("parity", _parity(full), _PARITY),
    ]
    if served:
        entries.append(Entry("serving", {}, _SERVING))
    return entries


_PARITY = (
    "How far merging and quantizing may move the model, token by token, on validation rows: mean divergence in nats. A "
    "merge is exact but for rounding; 4-bit weights move a small model further than 0.1: raise it when the comparison "
    "above shows that nothing is lost by it."
)
_SERVING = (
    "What serves must answer as what was evaluated, but for rounding, and a run that was not served and checked is "
    "refused. Take the section out where serve_check.enabled is false."
)


def _parity(full: bool) -> list[Entry]:
    merged = [] if full else [Entry("", {"reference": "adapter", "candidate": "merged", "max_mean_kl": 0.01})]
    return [*merged, Entry("", {"reference": "merged", "candidate": "quantized", "max_mean_kl": 0.1})]


def _check(judged: Judged, candidate: str, reference: str, kind: str, limit: float) -> dict[str, Any]:
    asked = {"task": judged.task, "metric": judged.metric, "candidate": candidate, "reference": reference, kind: limit}
    return {**asked, **_RANGE} if judged.likelihood else asked


_RANGE = {"direction": "lower", "score_range": list(NAT_RANGE), "max_row_loss": MAX_ROW_LOSS}


def _gain(judged: Judged) -> Entry:
    if judged.likelihood:
        why = (
            f"Tuning must have helped: right answers are likelier than with the base, by {REQUIRED_GAIN:g} nats a "
            "token or more. nll is lower when better; max_row_loss assumes that no row gets worse by more than that, "
            "and a row that does fails the check."
        )
    else:
        why = (
            f"Tuning must have helped: more answers are right than the base's, by more than {REQUIRED_GAIN:.0%}, and "
            f"shown, not only seen. With {judged.rows} rows that takes {gains_needed(judged.rows)} that become right "
            "and none that becomes wrong. Raise it to what would be worth a deployment. Where the base is good "
            "already, and you tune for something else, put margin in the place of required_gain."
        )
    return Entry("", _check(judged, "merged", "base", "required_gain", REQUIRED_GAIN), why)


def _kept(judged: Judged) -> Entry:
    unit = "nats a token" if judged.likelihood else "of the answers"
    loss = f"{judged.margin:g}" if judged.likelihood else f"{judged.margin:.0%}"
    why = (
        f"Quantizing must not cost more than this: {loss} {unit} is the least that {judged.rows} rows can show. A "
        "smaller margin needs more held-out rows (twice as small, four times as many); lint says whether they do."
    )
    return Entry("", _check(judged, "quantized", "merged", "margin", judged.margin), why)


def _form(judged: Judged) -> Entry:
    check = {"task": judged.task, "metric": "valid", "candidate": "quantized", "floor": _VALID}
    why = (
        "What will be served writes answers of the right form: a limit on what was seen, without confidence. Lower it "
        "for a small model; raise it where a program reads the answers."
    )
    return Entry("", check, why)


def _likelihood(judged: Judged, chosen: Chosen) -> list[Entry]:
    """A look at every token of the held-out answers: it sees damage that right and wrong do not."""
    loss = None if judged.likelihood else nat_margin(chosen.asked)
    if loss is None:
        return []
    asked = Judged(COMPLETION_PERPLEXITY, "nll", chosen.asked, loss, likelihood=True)
    why = (
        f"Nor may the right answers become less likely, by {loss:g} nats a token: this sees damage before an answer "
        "turns wrong. max_row_loss assumes that no row gets worse by more than that."
    )
    return [Entry("", _check(asked, "quantized", "merged", "margin", loss), why)]


def _champion(judged: Judged) -> Entry:
    why = "What users would get must not be worse than what they have: the version that the alias points at."
    return Entry("", _check(judged, "quantized", "champion_quantized", "margin", judged.margin), why)
