"""The picture of parity: how far each model is from the one it was made from, where, and on which tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tunegate.pages.charts import heat_map, histogram, line_chart
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, table
from tunegate.parity.compare import Difference
from tunegate.parity.report import NOISE, PAIRS, pair_name

#: A divergence below this is rounding, and is drawn as this.
SMALLEST_KL = 1e-12

#: The pair whose tokens are drawn one by one: what is served against what was trained.
_WHOLE = pair_name("adapter", "quantized")


def parity_page(document: Mapping[str, Any], found: Mapping[str, Difference], *, trained: str) -> str:
    """The page of one comparison.

    Args:
        document: ``parity.json``.
        found: pair → every token.
        trained: what the adapter was compared as.
    """
    sections = [
        Section(
            "In short",
            facts({"rows": document["rows"], "tokens": document["tokens"], **_engine(document)}) + _figures(document),
            "KL(reference ‖ candidate) in nats a token. The noise floor is the merged model against itself, computed "
            "in batches and row by row: a difference of that size is rounding.",
        ),
        Section(
            "Divergence of each token",
            histogram(
                {name: [_log(token.kl) for token in difference.tokens] for name, difference in found.items()},
                x=f"log10 of KL in nats; {math.log10(SMALLEST_KL):g} is that or less",
                counted="tokens",
            ),
        ),
        _layers(document),
        *_rows(found[_WHOLE]),
    ]
    sections += [_worst(name, document["pairs"][name]) for name in (pair_name(*pair) for pair in PAIRS)]
    return page("Parity", sections, subtitle=f"{trained}, the merged and the quantized model on the same tokens")


def _engine(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: document["engine"][name] for name in ("dtype", "device")}


def _figures(document: Mapping[str, Any]) -> str:
    columns = ("pair", "mean KL", "99 %", "largest", "same top token", "worst layer", "its error")
    lines = {**document["pairs"], NOISE: document["noise_floor"]}
    return table(columns, [(name, *_cells(found, document["layers"])) for name, found in lines.items()])


def _cells(found: Mapping[str, Any], layers: list[str]) -> tuple[object, ...]:
    worst = found["worst_layer"]
    error: object = "" if worst is None else found["layer_errors"][layers.index(worst)]
    agreement = f"{found['top1_agreement']:.1%}"
    return (found["mean_kl"], found["p99_kl"], found["max_token_kl"], agreement, worst or "none differs", error)


def _layers(document: Mapping[str, Any]) -> Section:
    lines = {**document["pairs"], NOISE: document["noise_floor"]}
    curves = {
        name: [(float(layer), math.log10(error)) for layer, error in enumerate(found["layer_errors"]) if error > 0]
        for name, found in lines.items()
    }
    return Section(
        "Error behind each layer",
        line_chart(curves, x="decoder layer", y="log10 of ‖H − Ĥ‖ / ‖H‖"),
        "H is the state behind a layer in the reference, Ĥ in the candidate. What one layer does stays in all that "
        "follow, so the worst layer is the one that adds most. A pair without a curve does not differ at all.",
    )


def _rows(whole: Difference) -> list[Section]:
    """A strip of each row's tokens, coloured by their divergence."""
    strips: dict[str, dict[int, float]] = {}
    for token in whole.tokens:
        strip = strips.setdefault(token.row_id, {})
        strip[len(strip)] = round(token.kl, 4)
    high = max(float(whole.kl.max()), SMALLEST_KL)
    return [
        Section(
            f"Rows: {_WHOLE}",
            heat_map(
                {row[:10] + row[16:]: strip for row, strip in strips.items()}, x="token of the completion", high=high
            ),
            f"The fullest colour is the largest divergence of a token, {high:.3g} nats.",
        )
    ]


def _worst(name: str, found: Mapping[str, Any]) -> Section:
    candidate, _, reference = name.partition(" against ")
    columns = ("row", "position", "KL", "expected", reference, "", candidate, "")
    rows = [
        (
            token["row_id"],
            token["position"],
            token["kl"],
            _shown(token["expected_text"]),
            _shown(token["reference_top_text"]),
            f"{token['reference_probability']:.1%}",
            _shown(token["candidate_top_text"]),
            f"{token['candidate_probability']:.1%}",
        )
        for token in found["worst_tokens"]
    ]
    note = "What each model finds likeliest, and how likely. The position counts the prompt's tokens too."
    return Section(f"Worst tokens: {name}", table(columns, rows), note)


def _shown(text: str) -> str:
    """A token with its spaces and line breaks visible."""
    return json.dumps(text, ensure_ascii=False)


def _log(kl: float) -> float:
    return math.log10(max(kl, SMALLEST_KL))
