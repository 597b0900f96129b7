"""The picture of the check: whether what serves answers as what was evaluated, where it does not, and how fast."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.models.reading import Noise
from tunegate.pages.charts import histogram
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.serve_check.compare import Compared

#: A difference below this is drawn as this.
SMALLEST = 1e-9

#: How many rows of each side are shown in full.
ROWS_SHOWN = 24


def unchecked_page(document: Mapping[str, Any]) -> str:
    """The page of a run that was told not to check."""
    body = paragraph(f"Nothing was served: {document['reason']}. Whether that will do is for the gate's policy to say.")
    return page("Serving", [Section("Not checked", body)], subtitle=f"model {document['digests']['model'][:12]}")


def serving_page(
    document: Mapping[str, Any], timings: Mapping[str, Any], rows: Sequence[Compared], noise: Noise
) -> str:
    """The page of one check.

    Args:
        document: ``serving.json``.
        timings: ``timings.json``.
        rows: every row, compared.
        noise: how far rounding moves the evaluated model.
    """
    sections = [
        Section("In short", facts(_short(document)), _SHORT_NOTE),
        *_scores(document),
        *_apart(document),
        Section("Log-probabilities", _differences(rows, noise), _difference_note(document)),
        Section("How fast", facts(_speed(timings)), "On the machine that ran this check."),
        Section("Answers", _answers(rows), f"The first {min(ROWS_SHOWN, len(rows))} of {len(rows)} rows."),
        Section("What served", facts(document["engine"]) + facts(document["evaluated_with"]), _ENGINE_NOTE),
        Section("What was compared", table(("artifact", "content digest"), list(document["digests"].items()))),
    ]
    return page("Serving", sections, subtitle=f"served as {document['served_name']}")


_SHORT_NOTE = (
    "The same answer: the same tokens up to the first at which the evaluated model's two best lie closer than rounding "
    "moves them (a tie). Behind that, both continue something else and are not compared. A certain token is one that "
    "rounding cannot change."
)
_ENGINE_NOTE = "First the engine that serves with the flags of production, then what computed the evaluated model."


def _short(document: Mapping[str, Any]) -> dict[str, object]:
    told: dict[str, object] = {
        "rows that answer the same": f"{document['agreement']:.1%}",
        "of these up to a tie": document["ties"],
        "rows rendered the same": f"{document['rendered']:.1%}",
        "rows that end the same": f"{document['ended']:.1%}",
        "rows": document["rows"],
        "tokens compared": document["tokens"],
        "certain tokens": document["certain_tokens"],
        "noise floor of a lead, nats": document["noise"]["gap_floor"],
    }
    if document["same_answers"] is not None:
        told["evaluated answers repeated"] = f"{document['same_answers']:.1%} of {document['evaluation_rows']}"
    return told


def _scores(document: Mapping[str, Any]) -> list[Section]:
    """The evaluated rows, scored again."""
    columns = ("score", "rows", "evaluated", "served")
    rows = [
        (metric, found["rows"], f"{found['evaluated']:.1%}", f"{found['served']:.1%}")
        for metric, found in document["scores"].items()
    ]
    note = "Evaluated rows that the server answered too: what its answers are worth, by the scorer of their task."
    return [Section("Scores", table(columns, rows), note)] if rows else []


def _apart(document: Mapping[str, Any]) -> list[Section]:
    """The rows that are not the same in every way."""
    columns = ("row", "side", "outcome", "same prompt", "same end", "token", "served", "evaluated", "lead, nats")
    rows = [
        (
            row["row_id"],
            row["side"],
            row["outcome"],
            _yes(row["rendered"]),
            _yes(row["ended"]),
            row["tokens"],
            _shown(row["served_token_text"]),
            _shown(row["evaluated_token_text"]),
            "" if row["gap"] is None else row["gap"],
        )
        for row in document["apart"]
    ]
    note = "Token: the place in the answer of the first one that differs, or the length of the answer."
    return [Section("Rows that are not the same", table(columns, rows), note)] if rows else []


def _differences(rows: Sequence[Compared], noise: Noise) -> str:
    served = [_log(difference) for row in rows for difference in row.differences]
    return histogram(
        {"served against evaluated": served, "rounding alone": [_log(move) for move in noise.logprobs]},
        x=f"log10 of the difference in nats; {math.log10(SMALLEST):g} is that or less",
        counted="tokens",
    )


def _difference_note(document: Mapping[str, Any]) -> str:
    found, noise = document["logprobs"], document["noise"]
    return (
        f"Served against evaluated: {_size(found['mean'])} on average, {_size(found['max'])} at most, of "
        f"{found['tokens']} tokens. Rounding alone: {_size(noise['mean'])} on average, {_size(noise['max'])} at most: "
        "the evaluated model against itself, computed row by row and with last bits moved at random."
    )


def _speed(timings: Mapping[str, Any]) -> dict[str, object]:
    first = timings["first_token_seconds"]
    return {
        "seconds until it answered": timings["started_seconds"],
        "first token, median, seconds": first["p50"],
        "first token, 95 %, seconds": first["p95"],
        "tokens a second, of one answer": timings["tokens_per_second"] or 0,
        "rows asked at the same time": timings["rows_at_once"],
    }


def _answers(rows: Sequence[Compared]) -> str:
    kept = {None: "", True: "yes", False: "no"}
    lines = [(row.row_id, row.side, row.outcome, kept[row.kept], row.text) for row in rows[:ROWS_SHOWN]]
    return table(("row", "side", "outcome", "as kept", "served answer"), lines)


def _yes(found: bool) -> str:
    return "yes" if found else "no"


def _shown(text: str | None) -> str:
    """A token with its spaces and line breaks visible."""
    return "" if text is None else json.dumps(text, ensure_ascii=False)


def _size(value: float | None) -> str:
    return "no number" if value is None else f"{value:.3g}"


def _log(difference: float) -> float:
    return math.log10(max(abs(difference), SMALLEST)) if math.isfinite(difference) else math.log10(SMALLEST)
