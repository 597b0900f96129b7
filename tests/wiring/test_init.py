"""From one's own rows to a promoted version: ``tunegate init``, then ``tunegate run`` of what it wrote."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.registry.aliases import current
from tunegate.storage.open import open_storage

pytestmark = pytest.mark.e2e  # minutes: with the other end-to-end tests

_TEAMS = ("refund", "delivery")


def _command(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "tunegate", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_rows_come_to_a_promoted_version_through_init_and_run(tmp_path: Path, tiny_base: Path) -> None:
    rng = random.Random(11)
    rows = []
    for _ in range(110):
        said = " ".join(f"{rng.choice('abcdefghkmnprst')}{rng.randrange(1000)}" for _ in range(8))
        rows.append({"prompt": f"Which team answers? {said}", "completion": rng.choice(_TEAMS)})
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    written = json.loads(
        _command(
            tmp_path, "init", "mine", "--base-model", str(tiny_base), "--data", "tickets.jsonl", "--no-serve-check",
            "--json",
        )
    )  # fmt: skip
    assert written["judged_by"]["task"] == "tickets"
    # A tiny model of random weights learns at the fastest rate that lint lets through, and is served anywhere.
    learning = {"learning_rate": "1.9e-3", "num_train_epochs": 6, "scheme": "FP8_DYNAMIC"}
    faster = {"parity.rows": 2, "evaluate.noise_rows": 1}
    changes = [word for name, value in (learning | faster).items() for word in ("--set", f"{name}={value}")]
    ran = ["run", "mine/recipe.yaml", "--output", "mine/run", *changes]
    _command(tmp_path, *ran)

    report = json.loads((tmp_path / "mine/run/report.json").read_text("utf-8"))
    assert report["decision"] == "PASS"
    assert report["results"]["merged"]["tasks"]["tickets"]["metrics"]["exact"] > 0.2
    record = current(open_storage(str(tmp_path / "mine/registry")), "champion")
    assert record is not None
    assert record.version == report["promotion"]["version"]
    verdict = json.loads(next((tmp_path / "mine/run/kfp").rglob("verdict.json")).read_text("utf-8"))
    asked = [check["rule"] for check in verdict["checks"] if check["rule"].startswith("tickets.exact")]
    assert len(asked) == 3, asked
