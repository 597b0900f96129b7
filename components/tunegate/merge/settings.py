"""Every setting of ``merge``, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class MergeSettings:
    """How the adapter becomes part of the base."""

    merge_base: str = setting(
        "dequantized",
        choices=("dequantized", "original"),
        help="for modules that were 4-bit in training: their NF4 round trip, or the original weights; others are "
        "always the original; full fine-tuning has nothing to add and takes no notice",
    )
    dtype: str = setting(
        "auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="dtype of the merged weights; auto: each weight keeps the base's",
    )
