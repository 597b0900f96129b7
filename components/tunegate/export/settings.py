"""Every setting of ``export``, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class ExportSettings:
    """Which rank the exported adapter has."""

    rank: int = setting(
        0,
        minimum=0,
        help="rank of every module, one that vLLM takes as max_lora_rank; 0: the smallest that holds the adapter",
    )
    reduce_rank_to: int = setting(
        0,
        minimum=0,
        help="cut every module to at most this rank by singular values; what that loses is measured on rows of a data "
        "set; 0: export exactly",
    )
    dtype: str = setting(
        "float32",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the exported factors; the smaller ones round them once more",
    )
