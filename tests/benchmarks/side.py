"""One side of a comparison, in a process of its own: it prints what it measured as one JSON line, the last."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "measured: "


def measure(script: Path, side: str, **arguments: object) -> dict[str, Any]:
    """Runs ``script`` as ``side`` and returns what it told.

    Args:
        script: a file that calls :func:`tell` when it is run with ``--side``.
        side: which of its sides.
        arguments: handed on as JSON.

    Raises:
        SystemExit: when the side fails; its output was shown.
    """
    print(f"\n── {script.stem}: {side} {arguments or ''}", flush=True)
    command = [sys.executable, str(script), "--side", side, json.dumps(arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found: dict[str, Any] = {}
        for line in process.stdout:
            if line.startswith(MARK):
                found = json.loads(line.removeprefix(MARK))
            elif line.startswith("["):
                print(line, end="", flush=True)
    if process.returncode or not found:
        raise SystemExit(f"{script.name} {side} failed with exit code {process.returncode}")
    return found


def asked() -> tuple[str, dict[str, Any]] | None:
    """The side and the arguments that this process was started for; None when it was started by a person."""
    if "--side" not in sys.argv:
        return None
    at = sys.argv.index("--side")
    return sys.argv[at + 1], json.loads(sys.argv[at + 2])


def tell(measured: Mapping[str, Any]) -> None:
    """Hands what was measured to the process that asked."""
    print(MARK + json.dumps(measured), flush=True)


def peak_bytes() -> int:
    """The most that this process has had resident since it started."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
