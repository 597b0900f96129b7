"""What an image must hold, and what it must not: run by images/smoke.sh in the environments of the image's locks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunegate.contracts.images import IMAGES, QUANTIZERS

IMAGE = os.environ["SMOKE_IMAGE"]
LOCKS = Path(__file__).parent

#: The environment beside that of the steps, where the image has one: the folder of its lock, and its Python.
BESIDE = os.environ["SMOKE_BESIDE"]
PYTHON = {"vllm": "TUNEGATE_SERVE_PYTHON", "autoawq": "TUNEGATE_QUANTIZE_LEGACY_PYTHON"}.get(BESIDE, "")

#: Steps that are components of another room, or of the pipelines.
ROOMS = {
    **dict.fromkeys(("check", "refused", "summarize"), "tunegate_pipelines.launch"),
    **dict.fromkeys(("request_approval", "await_approval", "not_approved", "decide"), "tunegate.approve.launcher"),
}
USED = {*IMAGES.items(), *(("quantize", image) for image in QUANTIZERS.values())}
STEPS = sorted(step for step, image in USED if image.startswith(f"tunegate/{IMAGE}:"))

with_two = pytest.mark.skipif(not BESIDE, reason="the image has one environment")
with_vllm = pytest.mark.skipif(BESIDE != "vllm", reason="the image holds no vLLM")


def locked(folder: str) -> dict[str, str]:
    """Package → the version that a lock states."""
    lock = LOCKS.joinpath(folder, "requirements.lock").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))


def beside(script: str) -> str:
    """What a script prints in the environment beside."""
    asked = subprocess.run([os.environ[PYTHON], "-I", "-c", script], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout


def test_the_image_is_of_some_step() -> None:
    assert STEPS


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_launched(step: str) -> None:
    import_module(ROOMS.get(step, f"tunegate.{step}.launcher"))


def test_versions_are_exactly_those_of_the_lock() -> None:
    wanted = locked(os.environ["SMOKE_STEPS"])
    assert {name: metadata.version(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "name",
    ["vllm", "awq", "hatchling", "pip", *(["torch", "transformers"] if IMAGE == "control" else [])],
)
def test_what_the_steps_do_not_use_is_not_there(name: str) -> None:
    assert find_spec(name) is None


def test_the_package_is_the_installed_one() -> None:
    """Not the checkout beside it: what the wheel lacks would go unseen."""
    assert Path(sys.prefix) in Path(str(import_module("tunegate").__file__)).parents


def test_the_executor_that_kfp_starts_is_there() -> None:
    asked = subprocess.run([sys.executable, "-m", "kfp.dsl.executor_main", "--help"], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr


@with_two
def test_the_environment_beside_has_exactly_its_lock_and_the_same_torch() -> None:
    wanted = {**locked(BESIDE), **locked("torch")}
    script = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {list(wanted)!r}}}))"
    assert json.loads(beside(script)) == wanted
    where = "import torch, pathlib; print(pathlib.Path(torch.__file__).resolve())"
    assert Path(beside(where).strip()) == Path(str(import_module("torch").__file__)).resolve()
    for name in ("pip", "tunegate", "kfp"):
        assert beside(f"import importlib.util; print(importlib.util.find_spec({name!r}))").strip() == "None"


@with_vllm
def test_vllm_starts_as_far_as_it_does_without_a_gpu() -> None:
    """Its options are those of the build that was locked, CUDA's libraries among what it loads."""
    command = [os.environ[PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--help=all"]
    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert asked.returncode == 0, asked.stderr[-2000:]
    for option in ("--served-model-name", "--enable-lora", "--max-lora-rank", "--load-format", "--max-model-len"):
        assert option in asked.stdout


@with_vllm
def test_triton_compiles_what_starts_a_kernel_with_the_compiler_of_the_image(tmp_path: Path) -> None:
    """Its own source, linked to the driver's library and loaded, as on a GPU; here that library does nothing."""
    compiler = Path(os.environ[PYTHON]).parent.parent / "compiler"
    source = beside("import triton; print(triton.__path__[0])").strip() + "/backends/nvidia/driver.c"
    asked_for = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", Path(source).read_text("utf-8"))))
    (tmp_path / "driver.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in asked_for), "utf-8")
    driver = tmp_path / "libcuda.so.1"
    environment = {"HOME": str(tmp_path), "PATH": f"{compiler}:/nowhere", "LD_LIBRARY_PATH": str(tmp_path)}
    subprocess.run([compiler / "gcc", "-shared", "-o", driver, tmp_path / "driver.c"], check=True, env=environment)
    script = f"""
from pathlib import Path
from triton.runtime.build import compile_module_from_src
source = Path({source!r})
include = [str(source.parent / "include")]
made = compile_module_from_src(source.read_text(), "cuda_utils", [{str(tmp_path)!r}], include, ["libcuda.so.1"])
print(callable(made.launch))
"""
    asked = subprocess.run([os.environ[PYTHON], "-I", "-c", script], capture_output=True, text=True, env=environment)
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert asked.stdout == "True\n"
