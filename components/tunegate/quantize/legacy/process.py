"""Runs the worker in the other environment, hands its progress on and raises its errors."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from tunegate.contracts.errors import ERROR_LINE, RunError, TunegateError, error_from_line
from tunegate.quantize.legacy.job import Job
from tunegate.quantize.work import STEP, Work
from tunegate.serving import guard
from tunegate.serving.isolation import isolated

#: How long a worker may take to end by itself when the step is stopped.
_STOP_SECONDS = 5.0

_LINES_TOLD = 12

#: The package, of which the worker imports the light parts.
_PACKAGE = Path(__file__).parents[2]


def run_worker(work: Work, python: Path) -> None:
    """Quantizes in a process of ``python``, which ends with this one.

    Raises:
        TunegateError: what the worker raised.
        RunError: when it ended otherwise, with the last that it said.
    """
    calibration = work.calibration
    job = Job(
        backend=work.settings.backend,
        source=str(work.source.absolute()),
        folder=str(work.folder.absolute()),
        layers=work.layers,
        group_size=work.group_size,
        rows=calibration.token_ids if calibration else (),
        dampening_frac=work.settings.dampening_frac,
        seed=work.settings.seed,
    )
    with tempfile.TemporaryDirectory(prefix="tunegate-quantize-") as scratch:
        path = Path(scratch) / "job.json"
        job.write(path)
        # The guard kills the worker when this process is gone, by whatever death.
        command = [sys.executable, guard.__file__, str(os.getpid()), str(_STOP_SECONDS)]
        command += [str(python), "-m", "tunegate.quantize.legacy.worker", str(path)]
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=_environment(Path(scratch)),
            cwd=scratch,  # a Python before 3.11 knows no PYTHONSAFEPATH, and imports from the folder it stands in
        ) as process:
            assert process.stderr is not None
            try:
                told = _relay(process.stderr)
            finally:
                process.terminate()
        if process.returncode:
            raise _ended(work.settings.backend, process.returncode, told)


def _environment(scratch: Path) -> dict[str, str]:
    """Nothing is fetched, and nothing imported but the other environment's packages and the light part of this one.

    A link to the package alone: where it is installed, all that this environment holds lies beside it.
    """
    sources = scratch / "sources"
    sources.mkdir()
    (sources / _PACKAGE.name).symlink_to(_PACKAGE)
    return {**isolated(os.environ), "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(sources)}


def _relay(lines: Iterable[str]) -> list[str]:
    """Prints the step's own lines; returns the last of the others.

    Raises:
        TunegateError: what the worker raised.
    """
    others: deque[str] = deque(maxlen=_LINES_TOLD)
    raised: TunegateError | None = None
    for line in lines:
        if line.startswith(f"[{STEP}] "):
            print(line, end="", flush=True)
        elif line.startswith(ERROR_LINE):
            raised = error_from_line(line)
        elif line.strip():
            others.append(line.rstrip().rpartition("\r")[2])
    if raised is not None:
        raise raised
    return list(others)


def _ended(backend: str, code: int, told: list[str]) -> RunError:
    killed = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
    return RunError(
        f"{backend} ended before the model was quantized.",
        seen=killed,
        expected="exit code 0",
        remedy="read its last lines; a process that was killed had too little memory, or was stopped",
        items=told[-_LINES_TOLD:],
    )
