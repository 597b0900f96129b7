"""The demonstration on the real model and real rows: what the product is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.registry.aliases import current, history
from tunegate.registry.versions import list_versions
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
