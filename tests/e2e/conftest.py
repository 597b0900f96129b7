"""What the end-to-end tests share: one run of the demonstration, whose artifacts every other test here goes on with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate_pipelines import form

RECIPES = Path(form.__file__).parent / "recipes"


@dataclass
class Finished:
    """A run of the command line."""

    folder: Path
    code: int
    said: str

    @property
    def report(self) -> Any:
        return json.loads((self.folder / "report.json").read_text("utf-8"))

    def share(self, role: str, metric: str) -> float:
        """The share of rows on which a model's call is ``valid`` or ``exact``."""
        return float(self.report["results"][role]["tasks"]["tool_call"]["metrics"][metric])

    def artifact(self, role: str) -> Path:
        """The folder of an artifact of this run."""
        return Path(self.report["artifacts"][role]["folder"])


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie, with one registry for all."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def run_recipe(place: Path) -> Callable[..., Finished]:
    """Runs a shipped recipe below ``place``; what it says is passed on.

    Arguments: the recipe's file name, the run's name, and settings as ``name=value``.
    """

    def run(recipe: str, name: str, *settings: str) -> Finished:
        addresses = [f"registry={place / 'registry'}", f"reuse_evaluations={place / 'evaluations'}"]
        command = [sys.executable, "-m", "tunegate", "run", str(RECIPES / recipe), "--output", str(place / name)]
        for setting in (*addresses, *settings):
            command += ["--set", setting]
        said = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                said.append(line)
        return Finished(place / name, process.returncode, "".join(said))

    return run


@pytest.fixture(scope="session")
def demo(run_recipe: Callable[..., Finished]) -> Finished:
    """The demonstration, run once."""
    return run_recipe("demo.yaml", "demo")
