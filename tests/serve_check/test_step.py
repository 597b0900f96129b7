"""The step on a stand-in for vLLM: what serves as evaluated agrees, and each way of serving otherwise is told."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import ArtifactError, RunError, SettingsError
from tunegate.contracts.files import read_json_lines
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.serve_check.questions import evaluated_questions
from tunegate.serve_check.scores import Rescored, means, rescored
from tunegate.serve_check.settings import ServeCheckSettings
from tunegate.serve_check.step import run
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import PROBES_NAME, check_probes, read_probes

SETTINGS = ServeCheckSettings(
    enabled=True, rows=3, max_new_tokens=6, evaluation_rows=2, rows_at_once=2, noise_runs=1, batch_size=2
)

#: ``run(**changes of the stand-in)`` → ``serving.json`` and its folder.
Check = Callable[..., tuple[dict[str, Any], Path]]


def stand_in() -> Any:
    """tests/serve_check/standing_in.py, which import-mode importlib cannot name here."""
    name = "standing_in"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].StandIn


def artifact(source: Path, output: Path, *, kind: str = "quantized", **files: Callable[[str], str]) -> Path:
    """A model folder as an artifact, with some of its text files changed."""

    def build(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        for name, change in files.items():
            (path,) = folder.glob(f"{name}.*")
            path.write_text(change(path.read_text("utf-8")), "utf-8")

    produce(output, kind=kind, parents={}, settings={}, build=build)
    return output


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tiny_base, tmp_path_factory.mktemp("candidate") / "quantized")


@pytest.fixture(scope="module")
def evaluation(model: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate

    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    settings = EvaluateSettings(tasks=("tool_call",), limit=3, max_new_tokens=5)
    evaluate(settings, model=model, dataset=tiny_dataset, output=output)
    return output


@pytest.fixture
def check(
    model: Path, evaluation: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Check]:
    monkeypatch.setattr(
        "tunegate.serve_check.step.find_environment",
        lambda python: ServeEnvironment(Path("python"), "0.32.0", cpu=True),
    )

    def checked(settings: ServeCheckSettings = SETTINGS, **changes: Any) -> tuple[dict[str, Any], Path]:
        given = {"weights": model, "tokenizer": model, "served_name": verify(model).content_digest, **changes}
        with stand_in()(**given).listening() as server:
            monkeypatch.setattr("tunegate.serve_check.step.start", lambda *engine, **how: server)
            try:
                run(
                    settings, ServingFlags(), model=model, dataset=tiny_dataset, evaluation=evaluation,
                    output=tmp_path / "serving",
                )  # fmt: skip
            finally:
                assert server.stopped
        return json.loads((tmp_path / "serving" / "serving.json").read_text("utf-8")), tmp_path / "serving"

    yield checked


def test_what_serves_as_evaluated_agrees_in_everything_and_repeats_the_evaluated_answers(
    check: Check, model: Path, evaluation: Path
) -> None:
    found, folder = check()
    assert (found["agreement"], found["rendered"], found["ended"], found["same_answers"]) == (1.0, 1.0, 1.0, 1.0)
    assert (found["rows"], found["evaluation_rows"], found["apart"]) == (5, 2, [])
    scored = {"rows": 2, "served": 0.0, "evaluated": 0.0}  # the tiny model has learned nothing
    assert found["scores"] == {"tool_call.exact": scored, "tool_call.valid": scored}
    assert found["certain_tokens"] > found["tokens"] / 2
    assert found["logprobs"]["max"] < 1e-4
    assert 0 < found["noise"]["gap_floor"] < 1e-3
    manifest = verify(folder, kind="serving")
    assert manifest.parents == found["digests"]
    assert manifest.parents["model"] == found["served_name"] == verify(model).content_digest
    assert manifest.parents["evaluation"] == verify(evaluation).content_digest
    assert found["engine"]["version"] == "0.32.0"
    assert (found["engine"]["dtype"], found["engine"]["enforce_eager"]) == ("float32", True)


def test_probes_are_kept_with_the_report_and_tell_the_served_model_from_another(
    check: Check, model: Path, make_base: Any
) -> None:
    found, folder = check()
    manifest, probes = verify(folder), read_probes(folder / PROBES_NAME)
    assert PROBES_NAME in {entry.path for entry in manifest.files} - set(manifest.volatile)
    assert (probes.model, len(probes.rows)) == (manifest.parents["model"], found["rows"])
    assert probes.gap_floor == found["noise"]["gap_floor"]
    assert sum(len(row.answer) for row in probes.rows) == found["tokens"]
    for weights, passes in ((model, True), (make_base(seed=4), False)):
        with stand_in()(weights=weights, tokenizer=model, served_name=probes.model).listening() as server:
            checked = check_probes(server.client, probes.model, probes, AnswerLimits())
        assert (checked.passed, checked.figures.agreement == 1.0) == (passes, passes), checked.reasons
        assert (checked.to_json()["rendered"], checked.to_json()["ended"]) == (1.0, 1.0)


def test_timings_are_kept_and_are_no_part_of_the_content_digest(check: Check) -> None:
    _, folder = check()
    timings = json.loads((folder / "timings.json").read_text("utf-8"))
    assert timings["started_seconds"] == 1.5
    assert timings["first_token_seconds"]["p50"] > 0
    assert timings["tokens_per_second"] > 0
    assert set(verify(folder).volatile) == {"page.html", "timings.json"}
    assert "tokens a second, of one answer" in (folder / "page.html").read_text("utf-8")


def test_other_weights_behind_the_right_name_differ(check: Check, make_base: Any, tmp_path: Path) -> None:
    found, folder = check(weights=make_base(seed=4))
    assert found["agreement"] < 0.5
    assert found["logprobs"]["mean"] > 100 * found["noise"]["mean"]
    assert (found["rendered"], found["same_answers"]) == (1.0, 0.0)
    differing = next(row for row in found["apart"] if row["outcome"] == "differs")
    assert differing["served_token"] != differing["evaluated_token"]
    assert differing["row_id"] in (folder / "page.html").read_text("utf-8")


def test_another_chat_template_renders_another_prompt_and_nothing_else_changes(
    check: Check, model: Path, tmp_path: Path
) -> None:
    other = artifact(model, tmp_path / "other", chat_template=lambda text: text.replace("<|im_end|>", "<|im_end|> "))
    found, _ = check(tokenizer=other)
    assert (found["rendered"], found["agreement"]) == (0.0, 1.0)
    assert not any(row["rendered"] for row in found["apart"])


def test_an_answer_that_is_cut_or_runs_on_behind_its_end_is_told(check: Check, tmp_path: Path) -> None:
    found, _ = check(cut=1)
    assert found["ended"] < 1
    assert found["agreement"] == 1.0  # as far as it goes


def test_rows_file_has_a_line_for_each_row(check: Check) -> None:
    import pyarrow.parquet as pq

    found, folder = check()
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert [row["side"] for row in rows] == ["validation"] * 3 + ["evaluation"] * 2
    assert sum(row["tokens"] for row in rows) == found["tokens"]
    assert [row["kept"] for row in rows] == [None, None, None, True, True]


def test_a_run_that_is_told_not_to_check_needs_no_server_and_says_so(
    model: Path, evaluation: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEGATE_SERVE_PYTHON", "/nowhere/python")
    inputs = {"model": model, "dataset": tiny_dataset, "evaluation": evaluation}
    manifest = run(ServeCheckSettings(), ServingFlags(), **inputs, output=tmp_path / "serving")
    found = json.loads((tmp_path / "serving" / "serving.json").read_text("utf-8"))
    assert (found["checked"], found["digests"]) == (False, dict(manifest.parents))
    assert "Not checked" in (tmp_path / "serving" / "page.html").read_text("utf-8")
    with pytest.raises(SettingsError, match="no serving environment"):
        run(SETTINGS, ServingFlags(), **inputs, output=tmp_path / "checked")


def test_a_server_that_fails_ends_the_step_and_leaves_no_report(check: Check, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="failed at the request"):
        check(broken=True)
    assert not (tmp_path / "serving").exists()


def test_a_model_that_is_served_under_another_name_ends_the_step(check: Check) -> None:
    with pytest.raises(RunError, match="changed while the check ran"):
        check(served_name="0" * 64)


def test_an_evaluation_of_another_model_is_refused_before_anything_starts(
    check: Check, evaluation: Path, model: Path, tiny_dataset: Path, make_base: Any, tmp_path: Path
) -> None:
    other = artifact(make_base(seed=4), tmp_path / "other")
    with pytest.raises(ArtifactError, match="evaluation is of another model"):
        run(SETTINGS, ServingFlags(), model=other, dataset=tiny_dataset, evaluation=evaluation, output=tmp_path / "s")


def test_a_context_of_production_that_would_cut_what_was_evaluated_is_refused_before_anything_starts(
    check: Check, evaluation: Path, model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    flags = ServingFlags(max_model_len=54)
    with pytest.raises(SettingsError, match="shorter context") as raised:
        run(SETTINGS, flags, model=model, dataset=tiny_dataset, evaluation=evaluation, output=tmp_path / "s")
    assert all(item.startswith("row ") for item in raised.value.items)


def test_an_evaluation_that_generated_nothing_cannot_be_repeated(
    check: Check, model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate

    settings = EvaluateSettings(tasks=("completion_perplexity",), limit=1)
    evaluate(settings, model=model, dataset=tiny_dataset, output=tmp_path / "evaluation")
    inputs = {"model": model, "dataset": tiny_dataset, "evaluation": tmp_path / "evaluation"}
    with pytest.raises(SettingsError, match="does not have"):
        run(SETTINGS, ServingFlags(), **inputs, output=tmp_path / "serving")


def test_evaluated_rows_are_scored_again_and_scores_that_are_not_those_of_the_answers_are_refused(
    model: Path, tiny_dataset: Path, tiny_tokenizer: Any
) -> None:
    from tunegate.models.chat import prompt_only

    rows = sorted(read_json_lines(tiny_dataset / "evaluation.jsonl"), key=lambda row: str(row["id"]))[:2]
    right = [row["completion"][-1]["content"] for row in rows]

    def kept(score: float) -> list[dict[str, Any]]:
        prompts = [prompt_only(tiny_tokenizer, row["prompt"]) for row in rows]
        return [
            {"row_id": row["id"], "task": task, "metric": metric, "score": score if task == "tool_call" else 2.0,
             "answer": answer if task == "tool_call" else "", "prompt_digest": sha256(prompt.encode()).hexdigest()}
            for row, answer, prompt in zip(rows, right, prompts, strict=True)
            for task, metric in (("completion_perplexity", "nll"), ("tool_call", "exact"), ("tool_call", "valid"))
        ]  # fmt: skip

    first, _ = evaluated_questions(tiny_dataset, tiny_tokenizer, kept(1.0), rows=2, max_new_tokens=5)
    assert first.kept is not None
    assert first.kept.answer == right[0]
    assert rescored(first.kept, right[0].replace("days", "nights")) == (
        Rescored("tool_call.exact", 0.0, 1.0), Rescored("tool_call.valid", 1.0, 1.0),
    )  # fmt: skip
    assert means([Rescored("m", 0.0, 1.0), Rescored("m", 1.0, 1.0)]) == {
        "m": {"rows": 2, "served": 0.5, "evaluated": 1}
    }
    with pytest.raises(ArtifactError, match="not what its answers are worth") as raised:
        evaluated_questions(tiny_dataset, tiny_tokenizer, kept(0.0), rows=2, max_new_tokens=5)
    assert len(raised.value.items) == 2


def test_the_same_work_is_done_once_and_other_flags_are_other_work(
    check: Check, model: Path, evaluation: Path, tiny_dataset: Path
) -> None:
    from tunegate.contracts.errors import OutputExistsError

    _, folder = check()
    inputs = {"model": model, "dataset": tiny_dataset, "evaluation": evaluation}
    assert run(SETTINGS, ServingFlags(), **inputs, output=folder) == verify(folder)
    for flags in (ServingFlags(dtype="bfloat16"), ServingFlags(max_model_len=400)):
        with pytest.raises(OutputExistsError):
            run(SETTINGS, flags, **inputs, output=folder)
    with pytest.raises(OutputExistsError):
        run(dataclasses.replace(SETTINGS, rows=2), ServingFlags(), **inputs, output=folder)
