"""The environment of AutoAWQ and AutoGPTQ: its Python, never the one that trains (their pins clash)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import AUTO_GPTQ, AUTOAWQ

#: Backend → what its environment must hold.
DISTRIBUTIONS: Mapping[str, str] = {AUTOAWQ: "autoawq", AUTO_GPTQ: "auto-gptq"}

#: Names the Python of that environment, where it is not at its usual place.
PYTHON_VARIABLE = "TUNEGATE_QUANTIZE_LEGACY_PYTHON"

#: Its usual place, below the folder one works in or below the checkout.
USUAL_PLACE = Path(".venvs/quantize_legacy/bin/python")

_CHECKOUT = Path(__file__).parents[4]
_ASKED_SECONDS = 60.0


def find_python(distribution: str, *, given: str = "") -> Path:
    """The Python that holds a distribution.

    Args:
        distribution: ``autoawq`` or ``auto-gptq``.
        given: the Python; empty: what ``TUNEGATE_QUANTIZE_LEGACY_PYTHON`` names, else ``.venvs/quantize_legacy``.

    Raises:
        SettingsError: when there is none, or it does not hold the distribution.
    """
    named = given or os.environ.get(PYTHON_VARIABLE, "")
    places = [Path(named).expanduser()] if named else [Path.cwd() / USUAL_PLACE, _CHECKOUT / USUAL_PLACE]
    path = next((place.absolute() for place in places if place.is_file()), None)
    if path is None:
        raise _unusable(distribution, places[0], "no such file")
    if not _runs(path, f"from importlib import metadata; metadata.version({distribution!r})", distribution):
        raise _unusable(distribution, path, f"a Python without {distribution}")
    return path


def _runs(python: Path, script: str, distribution: str) -> bool:
    """Whether a script ends well in another Python, which is asked on behalf of ``distribution``."""
    command = [str(python), "-I", "-c", script]
    try:
        return not subprocess.run(command, capture_output=True, timeout=_ASKED_SECONDS, check=False).returncode
    except (OSError, subprocess.SubprocessError) as error:
        raise _unusable(distribution, python, f"{type(error).__name__}: {error}") from error


def check_environment(backend: str, *, given: str = "") -> None:
    """Asks for what a backend of another environment needs, before a run spends anything on what comes before it.

    Args:
        backend: any backend; one that needs no other environment needs nothing here.
        given: see :func:`find_python`.

    Raises:
        SettingsError: when its environment is absent, or it needs a GPU and torch finds none there.
    """
    if backend not in DISTRIBUTIONS:
        return
    distribution = DISTRIBUTIONS[backend]
    python = find_python(distribution, given=given)
    if backend == AUTO_GPTQ and not _runs(python, "import torch; assert torch.cuda.is_available()", distribution):
        raise SettingsError(
            "AutoGPTQ quantizes on an NVIDIA GPU alone.",
            seen=f"torch of {python} finds no CUDA device",
            expected="a GPU on the machine that quantizes",
            remedy="use backend llmcompressor with scheme W4A16 and algorithm gptq, which runs on a CPU too",
        )


def _unusable(distribution: str, path: Path, seen: str) -> SettingsError:
    return SettingsError(
        f"There is no environment to run {distribution} in.",
        seen=f"{path}: {seen}",
        expected=f"a Python with {distribution}: {USUAL_PLACE}, or what quantize.legacy_python or "
        f"{PYTHON_VARIABLE} names",
        remedy="make it with `make quantize-legacy-environment` on the machine that runs the pipeline, or use backend "
        "llmcompressor; on a cluster the image quantize_legacy holds it",
    )
