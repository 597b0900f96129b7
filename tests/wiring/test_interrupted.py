"""A whole local run that is asked to stop while it trains: it exits 75, and the same command goes on in its folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.contracts.errors import Interrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path: Path, tiny_base: Path, rows_file: Path) -> list[str]:
    """A run whose training would take minutes, with a checkpoint after every step."""
    checks = [{"task": "tool_call", "metric": "valid", "candidate": "quantized", "reference": "merged", "margin": 0.6}]
    form: dict[str, Any] = {"base_model": str(tiny_base), "dataset": str(rows_file), "alias": "tiny", "method": "lora"}
    form |= {"registry": str(tmp_path / "registry"), "reuse_evaluations": str(tmp_path / "evaluations")}
    form |= {"r": 4, "scheme": "FP8_DYNAMIC", "max_length": 256, "num_train_epochs": 500.0}
    recipe = {
        "run": form,
        "prepare": {"num_calibration_samples": 4},
        "train": {"evaluations_per_run": 1, "checkpoint_seconds": 0.0},
        "quantize": {"num_calibration_samples": 4},
        "evaluate": {"max_new_tokens": 4},
        "gate": {"policy": {"checks": checks}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return [sys.executable, "-m", "tunegate", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]


def _stopped_after(step: int, command: list[str], number: signal.Signals, place: Path) -> subprocess.Popen[str]:
    """Runs until a checkpoint of that step is there, then sends the signal to the run alone, not to its steps."""
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    end = time.monotonic() + 240
    while time.monotonic() < end and run.poll() is None:
        if any(int(path.parent.name.removeprefix("step-")) >= step for path in place.glob("*/step-*/manifest.json")):
            run.send_signal(number)
            break
        time.sleep(0.1)
    run.wait(120)
    return run


def test_a_run_that_is_asked_to_stop_exits_75_and_the_same_command_goes_on(command: list[str], tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    first = _stopped_after(4, command, signal.SIGTERM, checkpoints)
    said = first.stdout.read() if first.stdout else ""
    assert first.returncode == Interrupted.exit_code, said
    assert "Training was interrupted after step" in said
    assert f"--output {tmp_path / 'run'}" in said
    before = max(int(path.parent.name.removeprefix("step-")) for path in checkpoints.glob("*/step-*/manifest.json"))
    second = _stopped_after(before + 3, command, signal.SIGINT, checkpoints)
    said = second.stdout.read() if second.stdout else ""
    assert second.returncode == Interrupted.exit_code, said
    assert f"going on after step {before}" in said
    assert "going on after step" in (tmp_path / "run" / "log.txt").read_text("utf-8")
