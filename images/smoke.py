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
    **dict.fromkeys(("begin_retrain", "end_retrain", "skipped"), "tunegate_pipelines.launch_retrain"),
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


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A process environment with the image's compiler, and a driver of GPUs in which every function does nothing.

    That library comes from the node, and what loads or links it finds it by its name.
    """
    folder = tmp_path_factory.mktemp("driver")
    packages = Path(beside("import triton; print(triton.__path__[0])").strip()).parent
    callers = [packages / "triton/backends/nvidia/driver.c", *packages.joinpath("vllm").glob("*.so")]
    called = {name for caller in callers for name in re.findall(rb"\bcu[A-Z]\w+\b", caller.read_bytes())}
    source = "".join(f"int {name.decode()}(void) {{ return 0; }}\n" for name in sorted(called))
    (folder / "driver.c").write_text(source, "utf-8")
    compiler = Path(os.environ[PYTHON]).parent.parent / "compiler"
    environment = {"HOME": str(folder), "PATH": f"{compiler}:/nowhere", "LD_LIBRARY_PATH": str(folder)}
    command = [compiler / "gcc", "-shared", "-o", folder / "libcuda.so.1", folder / "driver.c"]
    subprocess.run(command, check=True, env=environment)
    return environment


@with_vllm
@pytest.mark.parametrize("module", ["vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch"])
def test_vllms_kernels_find_all_but_the_driver(module: str, driver: dict[str, str]) -> None:
    """CUDA's libraries are torch's, which the lock of another folder names."""
    command = [os.environ[PYTHON], "-I", "-c", f"import torch, {module}"]
    asked = subprocess.run(command, capture_output=True, text=True, env=driver)
    assert asked.returncode == 0, asked.stderr[-2000:]


@with_vllm
def test_the_server_is_imported_as_far_as_it_is_without_a_gpu() -> None:
    wanted = locked(BESIDE)["vllm"]
    assert beside("import vllm.entrypoints.openai.api_server, vllm; print(vllm.__version__)").split()[-1] == wanted


@with_vllm
def test_triton_compiles_what_starts_a_kernel_with_the_compiler_of_the_image(driver: dict[str, str]) -> None:
    """Its own source, linked to the driver and loaded, as on a GPU."""
    folder = driver["LD_LIBRARY_PATH"]
    script = f"""
from pathlib import Path
import triton
from triton.runtime.build import compile_module_from_src
source = Path(triton.__path__[0]) / "backends/nvidia/driver.c"
include = [str(source.parent / "include")]
made = compile_module_from_src(source.read_text(), "cuda_utils", [{folder!r}], include, ["libcuda.so.1"])
print(callable(made.launch))
"""
    command = [os.environ[PYTHON], "-I", "-c", script]
    asked = subprocess.run(command, capture_output=True, text=True, env=driver)
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert asked.stdout == "True\n"
