"""The refusal on the real model: rows that are valid and false pass lint and prepare, and the gate alone stops them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.registry.aliases import current
from tunegate.registry.records import Record
from tunegate.storage.open import open_storage

#: What is refused here is what was learned: few rows are served, and vLLM takes half a second for each token on a CPU.
FEW_SERVED = ("serve_check.rows=2", "serve_check.evaluation_rows=1")


def alias(place: Path) -> Record | None:
    return current(open_storage(str(place / "registry")), "demo")


def assert_refused(wrong: Any) -> None:
    """The gate said no, for the rule that was broken, and named rows."""
    assert wrong.code == 3, wrong.said[-3000:]
    assert wrong.report["decision"] in ("FAIL", "INCONCLUSIVE")
    assert wrong.share("merged", "exact") - wrong.share("base", "exact") < 0.25
    verdict = json.loads((wrong.artifact("verdict") / "verdict.json").read_text("utf-8"))
    decided = [check for check in verdict["checks"] if check["decision"] != "PASS"]
    assert any("tool_call.exact: merged against base" in check["rule"] for check in decided)
    assert "tool_call.exact: merged against base" in wrong.said
    named = [row for check in decided for row in check["rows"]]
    assert named
    assert any(row in wrong.said for row in named)


@pytest.mark.e2e
def test_what_the_gate_refuses_leaves_the_alias_where_it_was(
    demo: Any, place: Path, run_recipe: Callable[..., Any]
) -> None:
    """The shipped recipe, a few steps long: CI trains once. Its full size is the next test's."""
    before = alias(place)
    base = f"base_model={demo.folder / 'inputs' / 'base_model'}"
    wrong = run_recipe("demo-wrong.yaml", "demo-wrong", base, *FEW_SERVED, "num_train_epochs=0.1", "evaluation_rows=24")
    assert_refused(wrong)
    assert before is not None
    assert alias(place) == before


@pytest.mark.slow
def test_valid_rows_with_false_answers_are_learned_and_refused_by_the_gate_alone(
    place: Path, run_recipe: Callable[..., Any]
) -> None:
    """The model answers with valid calls, so it learned, and what it learned is false. (The merged model of the right
    rows is exact on 42 % after one epoch.)"""
    before = alias(place)
    wrong = run_recipe("demo-wrong.yaml", "demo-wrong-whole", *FEW_SERVED, "num_train_epochs=0.7", "evaluation_rows=48")
    assert_refused(wrong)
    assert wrong.share("merged", "valid") >= 0.35  # the base: none
    assert alias(place) == before
