"""Every setting of ``merge``, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting

#: The two 16-bit bases that a QLoRA adapter can be added to, and the choice to measure which of them is better.
DEQUANTIZED, ORIGINAL, MEASURE = "dequantized", "original", "measure"


@dataclass(frozen=True)
class MergeSettings:
    """How the adapter becomes part of the base."""

    merge_base: str = setting(
        DEQUANTIZED,
        choices=(DEQUANTIZED, ORIGINAL, MEASURE),
        help="for modules that were 4-bit in training: their NF4 round trip, the original weights, or whichever has "
        "the lower loss on validation rows (dequantized, unless original is shown to be better); others are always "
        "the original; full fine-tuning has nothing to add and takes no notice",
    )
    dtype: str = setting(
        "auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="dtype of the merged weights; auto: each weight keeps the base's",
    )
    measured_rows: int = setting(
        64, unit="rows", minimum=2, help="measure: validation rows on which both merges are scored; all, when fewer"
    )
    measured_tokens: int = setting(
        128,
        unit="tokens",
        minimum=1,
        help="measure: tokens of each row's completion that are scored; disk is needed for two merged models and "
        "measured_rows × measured_tokens × vocabulary × 4 bytes",
    )
