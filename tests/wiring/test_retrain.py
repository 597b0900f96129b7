"""The pipeline `retrain` through kfp.local on the tiny model: made once, skipped while nothing changes, never twice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.registry.aliases import current, history, read_alias, rollback
from tunegate.storage.lease import acquire, read_lease, release
from tunegate.storage.open import open_storage

CHECKS = [{"task": "tool_call", "metric": "valid", "candidate": "quantized", "reference": "merged", "margin": 0.6}]
pytestmark = pytest.mark.e2e  # minutes: with the other end-to-end tests

RUN = """
import json, sys
from kfp import local
from tunegate_pipelines.retrain import retrain
arguments = json.loads(sys.argv[1])
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], raise_on_error=True)
retrain(**arguments)
"""


@dataclass
class Place:
    """Where the tiny model is retrained."""

    folder: Path
    arguments: dict[str, Any]

    @property
    def storage(self) -> Any:
        return open_storage(str(self.folder / "registry"))

    def run(self, name: str, **changes: Any) -> str:
        """Runs the pipeline and returns what it said."""
        arguments = {**self.arguments, **changes}
        command = [sys.executable, "-c", RUN, json.dumps(arguments), str(self.folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, rows_file: Path) -> Place:
    folder = tmp_path_factory.mktemp("retrain")
    (folder / "registry").mkdir()
    (folder / "rows.jsonl").write_bytes(rows_file.read_bytes())
    return Place(
        folder,
        {
            "base_model": str(tiny_base),
            "dataset": str(folder / "rows.jsonl"),
            "registry": str(folder / "registry"),
            "alias": "tiny",
            "method": "lora",
            "r": 4,
            "scheme": "FP8_DYNAMIC",
            "max_length": 256,
            "recipe": {
                "prepare": {"num_calibration_samples": 4},
                "train": {"gradient_checkpointing": False, "evaluations_per_run": 1},
                "quantize": {"num_calibration_samples": 4},
                "evaluate": {"max_new_tokens": 4},
                "parity": {"rows": 2},
                "gate": {"policy": {"checks": CHECKS, "when_no_champion": "pass"}},
                "approve": {"required": False},
            },
        },
    )


@pytest.fixture(scope="module")
def made(place: Place) -> str:
    """What the first retraining said, which made a version."""
    return place.run("first")


def test_first_one_promotes_with_what_it_was_made_from_and_gives_the_alias_back(place: Place, made: str) -> None:
    record = current(place.storage, "tiny")
    assert record is not None and len(record.made_from) == 64
    lease = read_lease(place.storage, "tiny")
    assert lease is not None and (lease.token, lease.released, lease.acting) == (1, True, False)


def test_unchanged_one_ends_green_and_makes_nothing(place: Place, made: str) -> None:
    before = current(place.storage, "tiny")
    said = place.run("again")
    assert "[retrain] unchanged" in said and "'skipped'" in said
    assert "Executing task 'prepare'" not in said
    assert current(place.storage, "tiny") == before


def test_one_beside_another_ends_green_and_leaves_it_alone(place: Place, made: str) -> None:
    acquire(place.storage, "tiny", "another-run", seconds=600)
    said = place.run("beside", seed=7)
    assert "[retrain] held" in said and "another-run" in said
    assert read_lease(place.storage, "tiny").holder == "another-run"  # type: ignore[union-attr]
    release(place.storage, "tiny", holder="another-run")


@pytest.mark.slow
def test_changed_data_makes_a_version_and_a_rollback_counts_as_what_is_there(place: Place, made: str) -> None:
    rows = place.folder / "rows.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    said = place.run("changed")
    assert "[retrain] changed" in said
    first, second = reversed(history(place.storage, "tiny"))
    assert first.made_from != second.made_from
    rollback(place.storage, read_alias(place.storage, "tiny"))
    rows.write_bytes(whole)
    assert "[retrain] unchanged" in place.run("back")
