"""What a retraining takes for a change, and what its pipeline holds together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tunegate.contracts.claim import parse_claim
from tunegate.storage.lease import read_lease
from tunegate.storage.open import open_storage
from tunegate_pipelines.changes import made_by, made_from
from tunegate_pipelines.compile import golden
from tunegate_pipelines.launch_retrain import launch_begin, launch_end
from tunegate_pipelines.recipe import resolve

CHECK = {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1}
POLICY: dict[str, Any] = {"checks": [CHECK]}
RECIPE: dict[str, Any] = {"gate": {"policy": POLICY}, "approve": {"required": False}}


@dataclass
class Artifact:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def digest(form: dict[str, Any] | None = None, **sections: Any) -> str:
    return made_by(resolve(form or {}, {**RECIPE, **sections}))


@pytest.mark.parametrize(
    ("form", "sections"),
    [
        ({"r": 8}, {}),
        ({"seed": 7}, {}),
        ({}, {"prepare": {"evaluation_fraction": 0.3}}),
        ({}, {"serving": {"max_model_len": 512}}),
        ({}, {"gate": {"policy": {**POLICY, "confidence": 0.99}}}),
    ],
)
def test_what_decides_a_version_is_a_change(form: dict[str, Any], sections: dict[str, Any]) -> None:
    assert digest(form, **sections) != digest()


@pytest.mark.parametrize(
    ("form", "sections"),
    [
        ({}, {"promote": {"note": "again"}}),
        ({}, {"approve": {"required": False, "expires_seconds": 60}}),
        ({"r": 16}, {}),  # a default that is written out
        ({}, {"serve_check": {"python": "/opt/vllm/bin/python", "ready_seconds": 60.0, "rows_at_once": 2}}),
        ({}, {"evaluate": {"patience_seconds": 5.0, "request_timeout_seconds": 5.0}}),
    ],
)
def test_what_decides_no_version_is_none(form: dict[str, Any], sections: dict[str, Any]) -> None:
    assert digest(form, **sections) == digest()


def test_rows_of_a_task_of_ones_own_are_part_of_the_recipe(tmp_path: Path) -> None:
    task = {"name": "capitals", "type": "exact_match", "data": "rows.jsonl", "prompt": "{{c}}?", "answer": "{{a}}"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task), "utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"c": "France", "a": "Paris"}), "utf-8")
    tasks = {"tasks": ["tool_call", str(tmp_path / "task.yaml")]}
    before = digest(evaluate=tasks)
    rows.write_text(json.dumps({"c": "Peru", "a": "Lima"}), "utf-8")
    assert digest(evaluate=tasks) != before


def test_code_of_an_installed_scorer_is_part_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "scoring_apart-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scoring-apart\nVersion: 1.0\n", "utf-8")
    (info / "RECORD").write_text("scoring_apart/__init__.py,,\n", "utf-8")
    (info / "top_level.txt").write_text("scoring_apart\n", "utf-8")
    (tmp_path / "scoring_apart").mkdir()
    code = tmp_path / "scoring_apart/__init__.py"
    code.write_text("def score(row, answer):\n    return 1\n", "utf-8")
    task = {"name": "own", "type": "python", "data": "rows.jsonl", "prompt": "{{c}}?"}
    task |= {"scorer": "scoring_apart:score", "score_range": [0, 1]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task), "utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"c": "France"}), "utf-8")
    tasks = {"tasks": ["tool_call", str(tmp_path / "task.yaml")]}
    found = [digest(evaluate=tasks)]  # not installed here: known by name
    monkeypatch.syspath_prepend(str(tmp_path))
    found.append(digest(evaluate=tasks))
    code.write_text("def score(row, answer):\n    return 0\n", "utf-8")
    found.append(digest(evaluate=tasks))
    assert len(set(found)) == 3


def test_bytes_of_data_and_base_count_and_a_hubs_commit_stands_for_them(tmp_path: Path) -> None:
    rows, base = tmp_path / "rows.jsonl", tmp_path / "base"
    rows.write_text("{}\n")
    base.mkdir()
    (base / "config.json").write_text("{}")
    found = [made_from(dataset=str(rows), base_model=str(base), recipe="r")]
    rows.write_text("{}\n{}\n")
    found.append(made_from(dataset=str(rows), base_model=str(base), recipe="r"))
    (base / "config.json").write_text('{"a": 1}')
    found.append(made_from(dataset=str(rows), base_model=str(base), recipe="r"))
    for commit in ("a", "b"):
        found.append(made_from(dataset=str(rows), base_model=f"org/name@{commit * 40}", recipe="r"))
    assert len(set(found)) == 5
    assert made_from(dataset=str(rows), base_model=str(base), recipe="r") == found[2]


@pytest.fixture
def begin(tmp_path: Path) -> Any:
    (tmp_path / "registry").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def run(**changes: Any) -> Any:
        given = {
            "base_model": f"org/name@{'a' * 40}", "dataset": str(tmp_path / "rows.jsonl"), "made_by": "r" * 64,
            "registry": str(tmp_path / "registry"), "alias": "champion", "approve": {"expires_seconds": 5000},
            "approval": "waived", "lease_seconds": 1000, "holder": "run-1", "page": Artifact(str(tmp_path / "page")),
        }  # fmt: skip
        return launch_begin(**{**given, **changes})

    return run


def test_claim_lasts_as_long_as_there_is_to_approve(begin: Any, tmp_path: Path) -> None:
    import datetime

    def seconds() -> float:
        lease = read_lease(open_storage(str(tmp_path / "registry")), "champion")
        assert lease is not None
        until = datetime.datetime.fromisoformat(lease.expires)
        return (until - datetime.datetime.now(datetime.UTC)).total_seconds()

    begun = begin()
    assert begun.decision == "changed"
    assert 900 < seconds() <= 1000
    begin(approval="required")
    assert 5900 < seconds() <= 6000
    claim = parse_claim(begun.claim)
    assert claim is not None and claim.token == 1
    assert "champion" in (tmp_path / "page").read_text("utf-8")


@pytest.mark.parametrize("given", [{"base_model": "org/name@main"}, {"lease_seconds": 0}])
def test_retraining_of_what_moves_or_without_a_lease_is_refused(begin: Any, given: dict[str, Any]) -> None:
    with pytest.raises(SystemExit) as ended:
        begin(**given)
    assert ended.value.code == 2


def test_run_that_ends_in_whatever_way_gives_its_claim_back(begin: Any, tmp_path: Path) -> None:
    begin()
    status = SimpleNamespace(state="FAILED", pipeline_task_name="train", error_message="out of memory")
    form = {"base_model": "b", "dataset": "d", "registry": str(tmp_path / "registry"), "alias": "champion"}
    launch_end(status, form, holder="run-2", page=Artifact(str(tmp_path / "end")))
    assert not read_lease(open_storage(form["registry"]), "champion").released  # type: ignore[union-attr]
    launch_end(status, form, holder="run-1", page=Artifact(str(tmp_path / "end")))
    assert read_lease(open_storage(form["registry"]), "champion").released  # type: ignore[union-attr]
    assert "out of memory" in (tmp_path / "end").read_text("utf-8")


def test_everything_after_the_decision_stands_behind_it_and_promotes_with_its_claim() -> None:
    document = yaml.safe_load(golden("retrain").read_text("utf-8"))
    tasks = document["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    (branches,) = [name for name in tasks if name.startswith("condition")]
    assert set(tasks) == {"check", "begin-retrain", branches}
    groups = document["components"][tasks[branches]["componentRef"]["name"]]["dag"]["tasks"]
    inside = {name: document["components"][one["componentRef"]["name"]]["dag"]["tasks"] for name, one in groups.items()}
    (changed,) = [name for name, found in inside.items() if "prepare" in found]
    (nothing,) = [name for name in inside if name != changed]
    assert groups[changed]["triggerPolicy"]["condition"].endswith("-decision'] == 'changed'")
    assert set(inside[nothing]) == {"skipped"}
    holders = [
        tasks["begin-retrain"]["inputs"]["parameters"]["holder"],
        document["root"]["dag"]["tasks"]["end-retrain"]["inputs"]["parameters"]["holder"],
    ]
    assert [one["runtimeValue"]["constant"] for one in holders] == ["{{$.pipeline_job_uuid}}"] * 2
    ends = document["root"]["dag"]["tasks"]["end-retrain"]["triggerPolicy"]["strategy"]
    assert ends == "ALL_UPSTREAM_TASKS_COMPLETED"
    claimed = [
        task["inputs"]["parameters"]["claim"]
        for component in document["components"].values()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if name in ("promote", "request-approval")
    ]
    assert len(claimed) == 2
    assert all("begin-retrain-claim" in one["componentInputParameter"] for one in claimed)


def test_finetune_claims_nothing() -> None:
    text = golden("finetune").read_text("utf-8")
    assert "begin-retrain" not in text
    assert "constant: {}" in text
