"""Negative log-likelihood per token of a completion, for lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.contracts.errors import RunError


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Scores one row.

    Args:
        doc: the row; ``completion_tokens`` is how many tokens were scored.
        results: one pair (log-likelihood in nats, whether greedy decoding gives the completion).

    Returns:
        ``nll`` per token, and for ``perplexity`` the pair (log-likelihood, tokens) that the harness's
        ``weighted_perplexity`` turns into exp(total nll / total tokens).

    Raises:
        RunError: when the model's probability is not a number: it is no score.
    """
    ((loglikelihood, _),) = results
    if not math.isfinite(loglikelihood):
        raise RunError(
            "A completion's likelihood is not a number.",
            seen=f"row {doc['row_id']}: the log-likelihood is {loglikelihood}",
            expected="a finite number of nats",
            remedy="check the weights for values that are not finite; with float16, try evaluate.dtype bfloat16",
        )
    tokens = int(doc["completion_tokens"])
    return {"nll": -loglikelihood / tokens, "perplexity": (loglikelihood, tokens)}
