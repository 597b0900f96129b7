"""The demonstration on the real model and real rows: what the product is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.manifest import input_digest, verify
from tunegate.registry.aliases import current, history
from tunegate.registry.versions import fetch_version, list_versions
from tunegate.serving.limits import AnswerLimits, limits_of_policy
from tunegate.serving.probes import PROBES_NAME, read_probes
from tunegate.storage.open import open_storage

pytestmark = pytest.mark.e2e

PAGES = (
    "dataset", "adapter", "merged", "quantized", "parity", "evaluation-of-base", "evaluation-of-merged",
    "evaluation-of-quantized", "champion", "serving", "verdict", "promotion",
)  # fmt: skip


def test_demo_is_promoted_on_pass(demo: Any, place: Path) -> None:
    assert demo.code == 0, demo.said[-3000:]
    assert demo.report["decision"] == "PASS"
    storage = open_storage(str(place / "registry"))
    record = current(storage, "demo")
    assert record is not None
    assert list_versions(storage) == [record.version]
    assert record.version in demo.said


def test_training_gains_at_least_25_points_of_exact_calls_and_quantization_keeps_them(demo: Any) -> None:
    assert demo.share("merged", "exact") - demo.share("base", "exact") >= 0.25
    assert demo.share("merged", "exact") - demo.share("quantized", "exact") <= 0.10


def test_vllm_served_the_quantized_model_and_answered_as_it_was_evaluated(demo: Any) -> None:
    found = json.loads((demo.artifact("serving") / "serving.json").read_text("utf-8"))
    assert (found["checked"], found["engine"]["name"], found["engine"]["dtype"]) == (True, "vllm", "float32")
    assert found["served_name"] == verify(demo.artifact("quantized")).content_digest
    assert (found["rows"], found["evaluation_rows"]) == (12, 4)
    assert (found["agreement"], found["rendered"], found["ended"]) == (1.0, 1.0, 1.0)
    scores = found["scores"]["tool_call.exact"]
    assert abs(scores["served"] - scores["evaluated"]) <= 1 / 4  # what a tie may cost


def test_the_promoted_version_holds_what_a_deployment_asks_again(demo: Any, place: Path, tmp_path: Path) -> None:
    storage = open_storage(str(place / "registry"))
    record = current(storage, "demo")
    assert record is not None
    version = fetch_version(storage, record.version, tmp_path / "version")
    probes = read_probes(tmp_path / "version" / "serving" / PROBES_NAME)
    assert probes.model == version.parents["quantized"]
    assert len(probes.rows) == 12
    assert limits_of_policy(tmp_path / "version" / "verdict" / "policy.json") == AnswerLimits()


def test_one_page_links_the_page_of_every_step(demo: Any) -> None:
    index = (demo.folder / "index.html").read_text("utf-8")
    pages = sorted(path.name for path in (demo.folder / "pages").iterdir())
    assert pages == sorted(f"{name}.html" for name in PAGES)
    assert all(f'href="pages/{name}"' in index for name in pages)


def test_only_progress_and_results_are_shown(demo: Any) -> None:
    assert "train │" in demo.said
    for dump in ("executor_input", "KFP Executor", "Traceback", "Warning"):
        assert dump not in demo.said


def test_hopeless_learning_rate_is_refused_before_anything_is_written(run_recipe: Callable[..., Any]) -> None:
    refused = run_recipe("demo.yaml", "hopeless", "learning_rate=1e-1")
    assert refused.code == 2
    assert "learning-rate" in refused.said
    assert not refused.folder.exists()


def test_refused_runs_leave_no_trace_in_the_history(demo: Any, place: Path) -> None:
    assert [record.action for record in history(open_storage(str(place / "registry")), "demo")] == ["promote"]


def test_the_base_is_the_same_bytes_whatever_the_environment_says_of_hubs(demo: Any, tmp_path: Path) -> None:
    """Two demonstrations have the same digests of data, adapter and models only if they start from the same base."""
    written = (
        "from pathlib import Path; from tunegate_pipelines.demo.model import write_base_model as w; w(Path('base'))"
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    subprocess.run([sys.executable, "-c", written], cwd=tmp_path, env=ours, check=True)
    assert input_digest(tmp_path / "base") == input_digest(demo.folder / "inputs" / "base_model")
