"""Serving targets: every scheme has a cell with its reason everywhere, and ``auto`` takes what is served as judged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import SCHEMES
from tunegate.contracts.vllm import GROUP_SIZES, SERVING_TARGETS
from tunegate.preflight import this_machine as machine_module
from tunegate.preflight.scheme_choice import choose_scheme, fit_scheme, refuse_unserved
from tunegate.preflight.serving_targets import TARGETS, find_target
from tunegate.preflight.this_machine import cpu_target, gpu_target, this_machine

SMOLLM2 = {"q_proj": 576, "down_proj": 1536}
ODD = {"q_proj": 100, "down_proj": 4096}
AVX512 = ("avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl")


def test_every_scheme_has_a_cell_on_every_target_with_a_reason_and_its_source() -> None:
    assert tuple(TARGETS) == SERVING_TARGETS
    for target in TARGETS.values():
        assert list(target.cells) == list(SCHEMES)
        for scheme, cell in target.cells.items():
            assert cell.reason and re.search(r"vLLM 0\.32, |measured ", cell.source), (target.name, scheme)
            assert cell.group_sizes == (GROUP_SIZES if SCHEMES[scheme].grouped else ())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("widths", [SMOLLM2, ODD, {}])
def test_auto_takes_only_what_is_served_as_it_was_evaluated(name: str, widths: dict[str, int]) -> None:
    found = choose_scheme(TARGETS[name], widths)
    assert found.served == "as evaluated" == TARGETS[name].cells[found.scheme].served
    assert TARGETS[name].why in found.reason and TARGETS[name].source in found.reason
    assert refuse_unserved(found.scheme, TARGETS[name], widths).group_size == found.group_size


def test_auto_looks_at_the_widths_and_says_what_it_passed_over() -> None:
    target = TARGETS["vllm-cpu-avx512"]
    fitting, odd = choose_scheme(target, SMOLLM2), choose_scheme(target, ODD)
    assert (fitting.scheme, fitting.group_size) == ("W4A16", 64)
    assert (odd.scheme, odd.group_size) == ("FP8_DYNAMIC", 0)
    assert "not W4A16: no group size of 128, 64, 32 divides" in odd.reason and "q_proj has 100" in odd.reason


@pytest.mark.parametrize(
    ("scheme", "target", "asked", "said"),
    [
        ("W4A16", "vllm-cpu-avx2", 0, "cpu_gemm_wna16"),
        ("W8A8", "vllm-cpu-avx512", 0, "saturate"),
        ("W8A8", "vllm-cuda-sm120", 0, "10.0"),
        ("FP8", "vllm-cpu-avx512-vnni", 0, "static_scaled_fp8_quant"),
        ("W4A16", "vllm-cuda-sm90", 16, "not of 16"),
        ("W4A16", "vllm-cuda-sm90", 128, "q_proj has 576"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason_and_what_can(
    scheme: str, target: str, asked: int, said: str
) -> None:
    with pytest.raises(SettingsError, match=f"{scheme} cannot be served on {target}") as caught:
        refuse_unserved(scheme, TARGETS[target], SMOLLM2, asked=asked)
    assert said in caught.value.seen
    assert choose_scheme(TARGETS[target], SMOLLM2).scheme in caught.value.remedy


def test_what_answers_otherwise_is_no_refusal_and_says_so() -> None:
    found = refuse_unserved("FP8_DYNAMIC", TARGETS["vllm-cuda-sm80"], SMOLLM2)
    assert found.served == "otherwise" and "activations at 16 bits" in found.reason


def test_a_group_size_that_was_asked_for_is_kept() -> None:
    assert fit_scheme("W4A16", TARGETS["vllm-cuda-sm90"], SMOLLM2, asked=32).group_size == 32


def test_an_unknown_target_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match="not known") as caught:
        find_target("vllm-cuda-sm70")
    assert "vllm-cuda-sm75" in caught.value.expected


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        (("sse4_2",), ""),
        (("avx2",), "vllm-cpu-avx2"),
        (("avx2", "avx_vnni"), "vllm-cpu-avx2-vnni"),
        (("avx2", "avx512f"), "vllm-cpu-avx2"),  # Knights Landing: not what torch calls AVX512
        (AVX512, "vllm-cpu-avx512"),
        ((*AVX512, "avx512_vnni"), "vllm-cpu-avx512-vnni"),
        ((*AVX512, "avx512_vnni", "amx_tile", "amx_int8"), "vllm-cpu-amx"),
    ],
)
def test_a_cpu_is_told_by_what_vllm_chooses_its_kernels_by(flags: tuple[str, ...], target: str) -> None:
    assert cpu_target(flags) == target


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ("7.0", ""), ("7.5", "vllm-cuda-sm75"), ("8.0", "vllm-cuda-sm80"), ("8.7", "vllm-cuda-sm86"),
        ("8.9", "vllm-cuda-sm89"), ("9.0", "vllm-cuda-sm90"), ("10.3", "vllm-cuda-sm100"), ("12.1", "vllm-cuda-sm120"),
    ],
)  # fmt: skip
def test_a_gpu_is_told_by_its_compute_capability(capability: str, target: str) -> None:
    assert gpu_target(capability) == target


def test_the_least_capable_gpu_of_a_machine_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '12.0\\n8.9\\n10.0\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(machine_module, "_ASK_GPU", (str(tool),))
    assert this_machine() == machine_module.Machine("vllm-cuda-sm89", "a GPU of compute capability 8.9")


def test_without_a_gpu_the_cpu_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_ASK_GPU", (str(tmp_path / "absent"),))
    for text, target in (("flags\t\t: fpu avx2\n", "vllm-cpu-avx2"), ("Features : asimd\n", "")):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine_module, "_CPU_INFO", tmp_path / "cpuinfo")
        assert this_machine().target == target
    monkeypatch.setattr(machine_module, "_CPU_INFO", tmp_path / "absent")
    assert this_machine().target == ""


def test_the_readme_has_the_table_as_it_is() -> None:
    text = (Path(machine_module.__file__).parent / "README.md").read_text("utf-8")
    words = {"as evaluated": "yes", "otherwise": "otherwise", "no": "no"}
    expected = [
        f"| `{target.name}` | {target.about} | "
        + " | ".join(words[cell.served] for cell in target.cells.values())
        + f" | `{target.best_first[0]}` |"
        for target in TARGETS.values()
    ]
    assert [line for line in text.splitlines() if line.startswith("| `vllm-")] == expected
