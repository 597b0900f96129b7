"""``parity.json``: what was compared and found, as the gate reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tunegate.contracts.manifest import tool_versions
from tunegate.models.probe import Probe
from tunegate.parity.compare import Difference, TokenDifference

SCHEMA_VERSION = 1

#: What is compared: (reference, candidate). The first is what was trained, the last what is served.
PAIRS = (("adapter", "merged"), ("merged", "quantized"), ("adapter", "quantized"))

#: The distributions that decide what a model computes.
ENGINE = ("torch", "transformers", "peft", "bitsandbytes", "compressed-tensors")

#: How the comparison of the merged model with itself is called.
NOISE = "noise floor"


def pair_name(reference: str, candidate: str) -> str:
    """How a pair is called in ``parity.json``: ``merged against adapter``."""
    return f"{candidate} against {reference}"


def parity_document(
    found: Mapping[str, Difference],
    *,
    digests: Mapping[str, str],
    probe: Probe,
    layers: Sequence[str],
    texts: Mapping[int, str],
    dtype: str,
    device: str,
    worst_tokens: int,
) -> dict[str, Any]:
    """Everything but the figures of each single token.

    Args:
        found: pair → difference, :data:`NOISE` among them.
        digests: what was compared.
        probe: on which rows.
        layers: the names of the decoder layers.
        texts: token → its text.
        dtype: what was computed in.
        device: on what.
        worst_tokens: how many tokens of each pair are named.
    """
    versions = tool_versions()
    pairs = {name: _pair(found[name], layers, texts, worst_tokens) for name in found if name != NOISE}
    return {
        "schema_version": SCHEMA_VERSION,
        "digests": dict(digests),
        "rows": len(probe.rows),
        "rows_digest": probe.digest,
        "rows_passed_over": probe.passed_over,
        "tokens": probe.scored_tokens,
        "engine": {
            **{name: versions[name] for name in ENGINE if name in versions},
            "dtype": dtype,
            "device": device,
        },
        "layers": list(layers),
        "noise_floor": _figures(found[NOISE], layers),
        "pairs": pairs,
    }


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures, flat."""
    flat: dict[str, Any] = {"rows": document["rows"], "tokens": document["tokens"]}
    for reference, candidate in PAIRS[:2]:
        pair = document["pairs"][pair_name(reference, candidate)]
        flat[f"mean_kl_{reference}_{candidate}"] = pair["mean_kl"]
        flat[f"top1_agreement_{reference}_{candidate}"] = pair["top1_agreement"]
    return {**flat, "mean_kl_noise": document["noise_floor"]["mean_kl"]}


def _pair(found: Difference, layers: Sequence[str], texts: Mapping[int, str], worst: int) -> dict[str, Any]:
    return {**_figures(found, layers), "worst_tokens": [_token(token, texts) for token in found.worst_tokens(worst)]}


def _figures(found: Difference, layers: Sequence[str]) -> dict[str, Any]:
    import numpy as np

    worst = found.worst_layer
    return {
        "mean_kl": float(found.kl.mean()),
        "max_token_kl": float(found.kl.max()),
        "p99_kl": float(np.quantile(found.kl, 0.99)),
        "top1_agreement": found.top1_agreement,
        "worst_layer": None if worst is None else layers[worst],
        "max_layer_error": max(found.layer_errors),
        "layer_errors": list(found.layer_errors),
    }


def _token(token: TokenDifference, texts: Mapping[int, str]) -> dict[str, Any]:
    told = {name: texts[getattr(token, name)] for name in ("expected", "reference_top", "candidate_top")}
    return {**asdict(token), **{f"{name}_text": text for name, text in told.items()}}
