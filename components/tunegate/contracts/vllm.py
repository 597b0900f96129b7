"""Which ranks of adapters the pinned vLLM serves."""

from __future__ import annotations

#: The vLLM that all of this is about.
VLLM = "vLLM 0.32"

#: What ``max_lora_rank`` may be (vllm/config/lora.py, MaxLoRARanks). An adapter of any rank up to it loads.
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: The largest of them.
SERVED_RANK = SERVED_RANKS[-1]

#: What vLLM takes where nobody says more.
DEFAULT_SERVED_RANK = 16


def smallest_served(rank: int) -> int | None:
    """The smallest ``max_lora_rank`` with which an adapter of ``rank`` loads; None where none is large enough."""
    return next((served for served in SERVED_RANKS if served >= rank), None)
