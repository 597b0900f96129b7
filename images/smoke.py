"""What an image must hold, and what it must not: run by images/smoke.sh in the environment of the image's lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunegate.contracts.images import IMAGES

IMAGE = os.environ["SMOKE_IMAGE"]

#: Steps that are components of another room, or of the pipelines.
ROOMS = {
    **dict.fromkeys(("check", "refused", "summarize"), "tunegate_pipelines.launch"),
    **dict.fromkeys(("request_approval", "await_approval", "not_approved", "decide"), "tunegate.approve.launcher"),
}
STEPS = [step for step, image in IMAGES.items() if image.startswith(f"tunegate/{IMAGE}:")]


def test_the_image_is_of_some_step() -> None:
    assert STEPS


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_launched(step: str) -> None:
    import_module(ROOMS.get(step, f"tunegate.{step}.launcher"))


def test_versions_are_exactly_those_of_the_lock() -> None:
    lock = Path(__file__).with_name(IMAGE).joinpath("requirements.lock").read_text("utf-8")
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    assert {name: metadata.version(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "name", ["vllm", "hatchling", "pip", *(["torch", "transformers"] if IMAGE == "control" else [])]
)
def test_what_the_image_does_not_use_is_not_there(name: str) -> None:
    assert find_spec(name) is None


def test_the_package_is_the_installed_one() -> None:
    """Not the checkout beside it: what the wheel lacks would go unseen."""
    assert Path(sys.prefix) in Path(str(import_module("tunegate").__file__)).parents


def test_the_executor_that_kfp_starts_is_there() -> None:
    asked = subprocess.run([sys.executable, "-m", "kfp.dsl.executor_main", "--help"], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
