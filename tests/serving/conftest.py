"""A model artifact that nobody loads, and a stand-in for the serving environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.manifest import write_manifest
from tunegate.serving.engine import Engine
from tunegate.serving.environment import ServeEnvironment


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An artifact of the kind that is served."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, kind="quantized", parents={}, settings={})
    return folder


@pytest.fixture
def where(tmp_path: Path) -> ServeEnvironment:
    """A serving environment whose Python runs the stand-in, whatever it is asked to run."""
    python = tmp_path / "python"
    stand_in = Path(__file__).with_name("stand_in.py")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n', "utf-8")
    python.chmod(0o755)
    return ServeEnvironment(python, "0.32.0", cpu=True)


@pytest.fixture
def told(model: Path) -> Callable[..., Engine]:
    """The engine that serves the model, with the stand-in told how to behave."""

    def make(**behaviour: Any) -> Engine:
        return Engine(model, environment={"STAND_IN": json.dumps(behaviour)})

    return make
