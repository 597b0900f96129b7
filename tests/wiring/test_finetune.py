"""The whole pipeline through kfp.local on the tiny model: what each step writes reaches the one that needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.registry.aliases import current
from tunegate.registry.versions import list_versions
from tunegate.storage.open import open_storage

#: No row of the quantized model may be much worse: true of any model, tuned or not.
PASSES = [
    {"task": "tool_call", "metric": "valid", "candidate": "quantized", "reference": reference, "margin": 0.6}
    for reference in ("merged", "champion_quantized")
]
#: A LoRA adapter in float32 is merged exactly but for rounding.
PARITY = [{"reference": "adapter", "candidate": "merged", "max_mean_kl": 1e-6, "min_top1_agreement": 1.0}]
#: A gain that a model of two layers cannot make.
CANNOT_PASS = [
    *PASSES,
    {"task": "tool_call", "metric": "exact", "candidate": "merged", "reference": "base", "required_gain": 0.9},
]


@dataclass
class Finished:
    """A run of the command line in its own process."""

    folder: Path
    registry: str
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wiring")


@pytest.fixture(scope="module")
def start(place: Path, tiny_base: Path, rows_file: Path) -> Any:
    """Runs a recipe on the tiny model, with some of it changed."""

    def run(name: str, checks: list[dict[str, Any]], **form: Any) -> Finished:
        registry = str(place / "registry")
        run_form = {"base_model": str(tiny_base), "dataset": str(rows_file), "registry": registry}
        run_form |= {"reuse_evaluations": str(place / "evaluations")}
        run_form |= {"method": "lora", "r": 4, "scheme": "FP8_DYNAMIC", "max_length": 256, "alias": "tiny"}
        recipe = {
            "run": {**run_form, **form},
            "prepare": {"num_calibration_samples": 4},
            "train": {"gradient_checkpointing": False, "evaluations_per_run": 1},
            "quantize": {"num_calibration_samples": 4},
            "evaluate": {"max_new_tokens": 4},
            "parity": {"rows": 2},
            "gate": {"policy": {"checks": checks, "parity": PARITY, "when_no_champion": "pass"}},
        }
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe), "utf-8")
        command = [sys.executable, "-m", "tunegate", "run", str(path), "--output", str(place / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return Finished(place / name, registry, done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def promoted(start: Any) -> Finished:
    finished = start("passing", PASSES)
    assert finished.code == 0, finished.out + finished.err
    return finished


def artifacts(run: Finished) -> dict[str, Path]:
    report = json.loads((run.folder / "report.json").read_text("utf-8"))
    return {name: Path(found["folder"]) for name, found in report["artifacts"].items()}


def test_every_step_leaves_an_artifact_that_verifies(promoted: Finished) -> None:
    found = artifacts(promoted)
    assert list(found) == [
        "dataset",
        "adapter",
        "merged",
        "quantized",
        "parity",
        "evaluation of base",
        "evaluation of merged",
        "evaluation of quantized",
        "champion",
        "serving",
        "verdict",
        "promotion",
    ]
    for folder in found.values():
        verify(folder)


def test_lineage_leads_from_the_verdict_back_to_the_data(promoted: Finished) -> None:
    manifests = {name: verify(folder) for name, folder in artifacts(promoted).items()}
    digests = {name: manifest.content_digest for name, manifest in manifests.items()}
    parents = {name: set(manifest.parents.values()) for name, manifest in manifests.items()}
    assert digests["dataset"] in parents["adapter"]
    assert digests["adapter"] in parents["merged"]
    assert {digests["merged"], digests["dataset"]} <= parents["quantized"]
    assert {digests[name] for name in ("adapter", "merged", "quantized")} <= parents["parity"]
    assert digests["parity"] in parents["verdict"] & parents["promotion"]
    assert digests["quantized"] in parents["evaluation of quantized"]
    assert {digests[f"evaluation of {role}"] for role in ("base", "merged", "quantized")} <= parents["verdict"]
    assert digests["verdict"] in parents["promotion"]


def test_pass_moves_the_alias_to_a_published_version(promoted: Finished) -> None:
    storage = open_storage(promoted.registry)
    record = current(storage, "tiny")
    assert record is not None
    assert record.version in list_versions(storage)
    assert record.version in promoted.out


def test_first_run_says_that_there_is_no_champion_and_a_later_one_takes_its_stored_evaluation(
    start: Any, promoted: Finished
) -> None:
    assert "no champion: tiny points at nothing yet" in promoted.out
    record = current(open_storage(promoted.registry), "tiny")
    assert record is not None
    later = start("later", PASSES, seed=1)
    assert later.code == 0, later.out + later.err
    assert f"champion: tiny → {record.version[:12]}" in later.out
    assert "champion_quantized: its stored evaluation is of the same rows, asked in the same way" in later.out
    champion = json.loads((artifacts(later)["champion"] / "champion.json").read_text("utf-8"))
    assert (champion["record"], champion["evaluations"]) == (record.digest, {"champion_quantized": "stored"})


def test_person_sees_table_verdict_and_page_and_none_of_kfps_dumps(promoted: Finished) -> None:
    for word in ("base", "merged", "quantized", "exact calls", "perplexity", "PASS", "index.html"):
        assert word in promoted.out
    for step in ("prepare", "train", "evaluate base", "evaluate quantized", "promote"):
        assert f"✓ {step} (" in promoted.out
    for dump in ("KFP Executor", "executor_input", "Got executor", "parameterValues", "Traceback", "Warning"):
        assert dump not in promoted.out + promoted.err
    assert "executor_input" in (promoted.folder / "log.txt").read_text("utf-8")


def test_index_links_a_page_of_every_step(promoted: Finished) -> None:
    index = (promoted.folder / "index.html").read_text("utf-8")
    pages = sorted(path.name for path in (promoted.folder / "pages").iterdir())
    assert len(pages) == 12
    for name in pages:
        assert f'href="pages/{name}"' in index
        assert "<html" in (promoted.folder / "pages" / name).read_text("utf-8")


def test_kfp_is_given_page_metrics_and_digest_of_each_step(promoted: Finished) -> None:
    outputs = [json.loads(path.read_text()) for path in (promoted.folder / "kfp").rglob("executor_output.json")]
    digests = {
        artifact["metadata"]["content_digest"]
        for output in outputs
        for found in output.get("artifacts", {}).values()
        for artifact in found["artifacts"]
        if "content_digest" in artifact.get("metadata", {})
    }
    assert {verify(folder).content_digest for folder in artifacts(promoted).values()} == digests
    assert len(list((promoted.folder / "kfp").rglob("page"))) == 14


def test_refused_run_exits_3_with_rule_and_leaves_the_alias(start: Any, promoted: Finished) -> None:
    before = current(open_storage(promoted.registry), "tiny")
    refused = start("refused", CANNOT_PASS, method="adalora")
    assert refused.code == 3, refused.out + refused.err
    assert "tool_call.exact: merged against base" in refused.err
    assert current(open_storage(refused.registry), "tiny") == before
    report = json.loads((refused.folder / "report.json").read_text("utf-8"))
    assert report["decision"] in ("FAIL", "INCONCLUSIVE")
    assert report["promotion"] is None
    assert "✗ refused" in refused.out
    assert "✓ summarize" in refused.out  # the exit handler
    assert "asked before" in refused.out  # the base, on the same rows, in the run before


def test_full_fine_tuning_runs_through_the_same_steps(start: Any, promoted: Finished) -> None:
    full = start("full", PASSES, method="full", learning_rate=2e-5)
    assert full.code == 0, full.out + full.err
    merged = json.loads((artifacts(full)["merged"] / "merge.json").read_text("utf-8"))
    assert merged["merge_base"] == "full"
    record = current(open_storage(full.registry), "tiny")
    assert record is not None
    assert record.version in full.out


def test_bad_data_exits_2_across_the_process_and_nothing_is_left(start: Any, place: Path) -> None:
    empty = place / "empty.jsonl"
    empty.write_text("")
    failed = start("empty", PASSES, dataset=str(empty))
    assert failed.code == 2, failed.out + failed.err
    assert "to do:" in failed.err
    assert "Traceback" not in failed.err
    assert not failed.folder.exists()


def test_failed_step_stops_the_run_and_names_what_was_done(start: Any, place: Path, make_base: Any) -> None:
    """A base without weights is found by the first step that loads it, and no other step starts after that."""
    broken = place / "base-without-weights"
    broken.mkdir()
    for path in make_base(seed=3).iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    failed = start("broken", PASSES, base_model=str(broken))
    assert failed.code == 2, failed.out + failed.err
    assert "safetensors" in failed.err
    assert not any(failed.folder.rglob(MANIFEST_NAME))
    assert "train" not in failed.out
