"""Every setting of parity, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class ParitySettings:
    """On what, and how, the models are compared.

    Disk is needed, while it runs, for four times ``rows × max_scored_tokens × (vocabulary + layers × hidden size) × 4``
    bytes: about 4 GB for a model of 8 B parameters and the defaults.
    """

    rows: int = setting(
        16, unit="rows", minimum=1, help="validation rows that are asked, the first in the order of their ids"
    )
    max_scored_tokens: int = setting(
        64, unit="tokens", minimum=1, help="tokens of each row's completion that are compared, the first ones"
    )
    max_length: int = setting(
        1024, unit="tokens", minimum=8, help="where a row is cut; one whose prompt is as long is passed over"
    )
    batch_size: int = setting(
        4,
        unit="rows",
        minimum=2,
        help="rows computed together; the noise floor is the merged model computed so, and one by one",
    )
    dtype: str = setting(
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="what to compute in; auto: bfloat16 on a GPU, float32 on a CPU; a base that was in 4 bits is computed in "
        "the dtype of its training",
    )
    worst_tokens: int = setting(20, unit="tokens", minimum=1, help="tokens of each pair that are named")
