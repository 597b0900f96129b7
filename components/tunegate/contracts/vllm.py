"""What the pinned vLLM serves: ranks of adapters, and the hardware that it tells apart."""

from __future__ import annotations

#: The vLLM that all of this is about.
VLLM = "vLLM 0.32"

#: What ``max_lora_rank`` may be (vllm/config/lora.py, MaxLoRARanks). An adapter of any rank up to it loads.
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: The largest of them.
SERVED_RANK = SERVED_RANKS[-1]

#: What vLLM takes where nobody says more.
DEFAULT_SERVED_RANK = 16

#: Where it serves, as far as another kernel computes there: NVIDIA's compute capabilities, and what an x86 CPU knows.
#: ``preflight/serving_targets.py`` says what each of them has.
SERVING_TARGETS = (
    "vllm-cuda-sm75", "vllm-cuda-sm80", "vllm-cuda-sm86", "vllm-cuda-sm89", "vllm-cuda-sm90", "vllm-cuda-sm100",
    "vllm-cuda-sm120", "vllm-cpu-avx2", "vllm-cpu-avx2-vnni", "vllm-cpu-avx512", "vllm-cpu-avx512-vnni", "vllm-cpu-amx",
)  # fmt: skip

#: Stands for this machine in a local run. Elsewhere nobody knows yet where a model will be served.
THIS_MACHINE = "auto"

#: Weights that share a scale: the sizes that every kernel for groups has, best compression first.
GROUP_SIZES = (128, 64, 32)


def smallest_served(rank: int) -> int | None:
    """The smallest ``max_lora_rank`` with which an adapter of ``rank`` loads; None where none is large enough."""
    return next((served for served in SERVED_RANKS if served >= rank), None)
