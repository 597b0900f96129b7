"""The demonstration and the refusal on the real model and real rows: what the product is for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.registry.aliases import current, history
from tunegate.registry.records import Record
from tunegate.registry.versions import list_versions
from tunegate.storage.open import open_storage
from tunegate_pipelines import form

pytestmark = pytest.mark.e2e

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


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


def tunegate(place: Path, recipe: str, name: str, *settings: str) -> Finished:
    """Runs a shipped recipe below ``place``, with one registry for all; what it says is passed on."""
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


@pytest.fixture(scope="session")
def demo(place: Path) -> Finished:
    """The demonstration, run once: its base model is reused by the other tests."""
    return tunegate(place, "demo.yaml", "demo")


def alias(place: Path) -> Record | None:
    return current(open_storage(str(place / "registry")), "demo")


def test_demo_is_promoted_on_pass(demo: Finished, place: Path) -> None:
    assert demo.code == 0, demo.said[-3000:]
    assert demo.report["decision"] == "PASS"
    record = alias(place)
    assert record is not None
    assert list_versions(open_storage(str(place / "registry"))) == [record.version]
    assert record.version in demo.said


def test_training_gains_at_least_25_points_of_exact_calls_and_quantization_keeps_them(demo: Finished) -> None:
    assert demo.share("merged", "exact") - demo.share("base", "exact") >= 0.25
    assert demo.share("merged", "exact") - demo.share("quantized", "exact") <= 0.10


def test_one_page_links_the_page_of_every_step(demo: Finished) -> None:
    index = (demo.folder / "index.html").read_text("utf-8")
    pages = sorted(path.name for path in (demo.folder / "pages").iterdir())
    assert len(pages) == 10
    assert all(f'href="pages/{name}"' in index for name in pages)


def test_only_progress_and_results_are_shown(demo: Finished) -> None:
    assert "train │" in demo.said
    for dump in ("executor_input", "KFP Executor", "Traceback", "Warning"):
        assert dump not in demo.said


def test_valid_rows_with_false_answers_are_refused_by_the_gate_alone(demo: Finished, place: Path) -> None:
    """The shipped recipe, made shorter so that CI stays under an hour: the model still answers with valid calls, so it
    learned, and what it learned is false. (The merged model of the right rows is exact on 42 % after one epoch.)"""
    before = alias(place)
    wrong = tunegate(
        place,
        "demo-wrong.yaml",
        "demo-wrong",
        f"base_model={demo.folder / 'inputs' / 'base_model'}",
        "scheme=FP8_DYNAMIC",
        "num_train_epochs=0.7",
        "evaluation_rows=48",
    )
    assert wrong.code == 3, wrong.said[-3000:]
    assert wrong.report["decision"] in ("FAIL", "INCONCLUSIVE")
    assert wrong.share("merged", "valid") >= 0.35  # the base: none
    assert wrong.share("merged", "exact") - wrong.share("base", "exact") < 0.25
    assert alias(place) == before
    verdict = json.loads((Path(wrong.report["artifacts"]["verdict"]["folder"]) / "verdict.json").read_text("utf-8"))
    decided = [check for check in verdict["checks"] if check["decision"] != "PASS"]
    assert any("tool_call.exact: merged against base" in check["rule"] for check in decided)
    assert "tool_call.exact: merged against base" in wrong.said
    named = [row for check in decided for row in check["rows"]]
    assert named
    assert any(row in wrong.said for row in named)


def test_hopeless_learning_rate_is_refused_before_anything_is_written(place: Path) -> None:
    refused = tunegate(place, "demo.yaml", "hopeless", "learning_rate=1e-1")
    assert refused.code == 2
    assert "learning-rate" in refused.said
    assert not refused.folder.exists()


def test_refused_runs_leave_no_trace_in_the_history(demo: Finished, place: Path) -> None:
    assert [record.action for record in history(open_storage(str(place / "registry")), "demo")] == ["promote"]
