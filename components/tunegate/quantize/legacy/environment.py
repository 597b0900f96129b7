"""The environment of AutoAWQ and AutoGPTQ: its Python, never the one that trains (their pins clash)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tunegate.contracts.errors import SettingsError

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
    asked = f"from importlib import metadata; print(metadata.version({distribution!r}))"
    try:
        subprocess.run([str(path), "-I", "-c", asked], capture_output=True, timeout=_ASKED_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise _unusable(distribution, path, f"a Python without {distribution}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise _unusable(distribution, path, f"{type(error).__name__}: {error}") from error
    return path


def _unusable(distribution: str, path: Path, seen: str) -> SettingsError:
    return SettingsError(
        f"There is no environment to run {distribution} in.",
        seen=f"{path}: {seen}",
        expected=f"a Python with {distribution}: {USUAL_PLACE}, or what quantize.legacy_python or "
        f"{PYTHON_VARIABLE} names",
        remedy="make it with `make quantize-legacy-environment`, or use backend llmcompressor",
    )
