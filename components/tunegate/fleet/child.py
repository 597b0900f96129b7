"""Builds a fleet in a process of its own: PEFT and torch leave with it, and it ends with the one that wanted it."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from tunegate.contracts.errors import ERROR_LINE, Interrupted, RunError, error_from_line, reports_errors
from tunegate.contracts.files import pretty_json
from tunegate.fleet.resolve import Resolved
from tunegate.registry.settings import SigningSettings
from tunegate.serving.guarded import Guarded

_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.2
_LINES_TOLD = 12


def build_in_child(
    resolved: Resolved, signing: SigningSettings, output: Path, *, log: Path, cancelled: threading.Event
) -> None:
    """Builds ``output`` as :func:`tunegate.fleet.build.build_fleet` does.

    Args:
        resolved: what it is made of.
        signing: whose signature on a version counts.
        output: where the artifact will be.
        log: the file that gets what it says.
        cancelled: set when it is no longer wanted.

    Raises:
        TunegateError: what it raised.
        Interrupted: when it is no longer wanted.
        RunError: when it ended otherwise.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    job = output.with_name(f"{output.name}.job.json")
    job.write_bytes(pretty_json({"fleet": resolved.to_json(), "signing": asdict(signing), "output": str(output)}))
    command = [sys.executable, "-P", "-m", "tunegate.fleet.child", str(job)]  # nothing of the folder one stands in
    child = Guarded(command, os.environ, log=log, stop_seconds=_STOP_SECONDS)
    try:
        while (code := child.poll()) is None:
            if cancelled.wait(_POLL_SECONDS):
                raise Interrupted(
                    "The fleet is no longer wanted.",
                    seen="it was still built",
                    expected="a fleet that is waited for",
                    remedy="nothing: what is wanted now is built",
                )
    finally:
        child.stop()
        job.unlink(missing_ok=True)
    if code:
        lines = log.read_text("utf-8", errors="replace").splitlines()
        raised = next((line for line in reversed(lines) if line.startswith(ERROR_LINE)), None)
        if raised is not None:
            raise error_from_line(raised)
        raise RunError(
            "The fleet was not built.",
            seen=f"its process ended with exit code {code}",
            expected="exit code 0",
            remedy=f"the log tells more: {log}; a process that was killed had too little memory",
            items=[line for line in lines if line.strip()][-_LINES_TOLD:],
        )


@reports_errors
def main(path: Path) -> None:
    """Does a job that :func:`build_in_child` wrote."""
    from tunegate.fleet.build import build_fleet

    job = json.loads(path.read_text("utf-8"))
    build_fleet(Resolved.from_json(job["fleet"]), SigningSettings(**job["signing"]), Path(job["output"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
