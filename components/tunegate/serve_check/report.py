"""``serving.json``: what was served, asked and found, as the gate reads it; and the timings, which tell of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunegate.models.reading import Noise
from tunegate.serve_check.answers import Answer
from tunegate.serve_check.compare import Compared
from tunegate.serve_check.scores import means
from tunegate.serving.agreement import sizes

SCHEMA_VERSION = 1


def unchecked_document(digests: Mapping[str, str]) -> dict[str, Any]:
    """The report of a run that was told not to check: the gate decides whether that will do."""
    return {
        "schema_version": SCHEMA_VERSION,
        "checked": False,
        "digests": dict(digests),
        "reason": "serve_check.enabled is false",
    }


def serving_document(
    rows: Sequence[Compared],
    noise: Noise,
    *,
    digests: Mapping[str, str],
    served_name: str,
    engine: Mapping[str, Any],
    evaluated_with: Mapping[str, Any],
    texts: Mapping[int, str],
) -> dict[str, Any]:
    """Everything but the timings.

    Args:
        rows: every row, compared.
        noise: how far rounding moves the evaluated model.
        digests: what was compared.
        served_name: what the server calls the model.
        engine: what served it, and with which flags.
        evaluated_with: what computed the evaluated model.
        texts: token → its text.
    """
    kept = [row.kept for row in rows if row.kept is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "checked": True,
        "digests": dict(digests),
        "served_name": served_name,
        "engine": dict(engine),
        "evaluated_with": dict(evaluated_with),
        "rows": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "certain_tokens": sum(row.certain_tokens for row in rows),
        "agreement": _share(row.outcome != "differs" for row in rows),
        "ties": sum(row.outcome == "tie" for row in rows),
        "rendered": _share(row.rendered for row in rows),
        "ended": _share(row.ended for row in rows),
        "evaluation_rows": len(kept),
        "same_answers": _share(kept) if kept else None,
        "scores": means([score for row in rows for score in row.scores]),
        "logprobs": asdict(sizes([difference for row in rows for difference in row.differences])),
        "noise": {"gap_floor": noise.gap_floor, **asdict(sizes(noise.logprobs))},
        "apart": [_apart(row, texts) for row in rows if row.outcome != "same" or not row.rendered or not row.ended],
    }


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures, flat."""
    if not document["checked"]:
        return {"checked": "no", "reason": document["reason"]}
    flat = {name: document[name] for name in ("agreement", "rendered", "ended", "rows", "certain_tokens")}
    flat["mean_logprob_difference"] = document["logprobs"]["mean"]
    flat["mean_logprob_noise"] = document["noise"]["mean"]
    if document["same_answers"] is not None:
        flat["same_answers"] = document["same_answers"]
    for metric, found in document["scores"].items():
        flat[f"served_{metric}"] = found["served"]
    return {"checked": "yes", **flat}


def timings_document(answers: Sequence[Answer], *, started_seconds: float, rows_at_once: int) -> dict[str, Any]:
    """How fast the server was, asked so many rows at the same time; tokens a second are those of one answer."""
    import numpy as np

    first = [answer.first_token_seconds for answer in answers]
    tokens, seconds = sum(len(answer.tokens) for answer in answers), sum(answer.answer_seconds for answer in answers)
    return {
        "schema_version": SCHEMA_VERSION,
        "started_seconds": started_seconds,
        "first_token_seconds": {
            name: float(np.quantile(first, share)) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
        },
        "tokens_per_second": tokens / seconds if seconds else None,
        "rows_at_once": rows_at_once,
        "answers": len(answers),
        "answered_tokens": tokens,
    }


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)


def _apart(row: Compared, texts: Mapping[int, str]) -> dict[str, Any]:
    """A row that is not the same in every way."""
    told: dict[str, Any] = {
        name: getattr(row, name) for name in ("row_id", "side", "outcome", "rendered", "ended", "tokens", "gap")
    }
    for name in ("served_token", "evaluated_token"):
        token = getattr(row, name)
        told[name] = token
        told[f"{name}_text"] = None if token is None else texts[token]
    return told
