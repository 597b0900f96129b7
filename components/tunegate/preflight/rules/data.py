"""Rules on the rows and the base: how long rows may be, and whether a low rank can hold what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunegate.preflight.facts import fact_share
from tunegate.preflight.rule import Context, Remark, Sections
from tunegate.preflight.rules.adapter import trains_adapter

#: From this rank on, an adapter is not called low.
ENOUGH_RANK = 32

#: From this share of its completions on, a data set looks like facts to be learned.
MANY_FACTS = 0.5


def has_low_rank(sections: Sections) -> bool:
    """For rules on adapters with little room."""
    return trains_adapter(sections) and sections["train"]["r"] < ENOUGH_RANK


def fact_ingestion(context: Context) -> Iterator[Remark]:
    """Many separate facts, and a low rank to store them."""
    share = fact_share(context.sample.completions)
    if share >= MANY_FACTS:
        yield Remark(
            "warning",
            f"{share:.0%} of the completions looked at are short, full of names and numbers, and unlike each other: "
            f"facts to be learned, with train.r {context.of('train')['r']}",
            f"raise r to {2 * ENOUGH_RANK} or more, or use method full; facts that change are better looked up",
        )


def max_length(context: Context) -> Iterator[Remark]:
    """Rows longer than the base has positions for."""
    asked, known = context.of("train")["max_length"], known_positions(context.config)
    if known and asked > known:
        yield Remark(
            "error",
            f"train.max_length {asked}, and the base knows {known} positions",
            f"lower max_length to {known}",
        )


def known_positions(config: Mapping[str, Any]) -> int:
    """How far the base's positions go, stretched ones included; 0 when the config does not say."""
    text = config.get("text_config") or config
    known = text.get("max_position_embeddings") or 0
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    factor, original = scaling.get("factor") or 1, scaling.get("original_max_position_embeddings") or known
    return int(max(known, original * factor))
