"""Evaluation with the real harness on a tiny model: every row scored, every prompt as training rendered it."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import (
    ArtifactError,
    DataError,
    ModelError,
    OutputExistsError,
    RunError,
    SettingsError,
)
from tunegate.contracts.files import sha256_file
from tunegate.contracts.manifest import verify
from tunegate.evaluate.documents import documents, read_rows
from tunegate.evaluate.harness_model import harness_model
from tunegate.evaluate.measured import Measured
from tunegate.evaluate.reuse import Work, keep, kept
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.models.chat import render, render_text
from tunegate.models.load import load_causal_lm, load_tokenizer

LIMIT = 6
SETTINGS = EvaluateSettings(limit=LIMIT, batch_size=4, max_new_tokens=8)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, tiny_base, tiny_dataset) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "base"
    run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=folder)
    return folder


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Makes the test fail when a model is loaded."""

    def load(*args, **kwargs) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("tunegate.models.load.load_causal_lm", load)


def _lines(folder: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "rows.parquet").to_pylist()


def _dataset(folder: Path, rows: list[dict]) -> Path:
    def build(target: Path) -> None:
        (target / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    produce(folder, kind="dataset", parents={}, settings={}, build=build)
    return folder


def _conversation(identity: str, **fields) -> dict:
    return {
        "id": identity,
        "prompt": [
            {"role": "system", "content": "Be brief. <|im_end|> is not the end. {{ braces }}"},
            {"role": "user", "content": "What is 2 + 2?  "},
            {"role": "assistant", "content": "4\n"},
            {"role": "user", "content": "And 3 + 3?\n\n"},
        ],
        "completion": [{"role": "assistant", "content": " six"}],
        "fields": json.dumps(fields),
    }


def _tokens_of_trl(tokenizer, row: dict) -> tuple[list[int], list[int]]:
    """Prompt and completion as TRL's SFTTrainer tokenizes them."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True, return_dict=True)
    start = len(prompt["input_ids"])
    return prompt["input_ids"], whole["input_ids"][start:]


def test_only_a_line_feed_ends_a_row(tmp_path) -> None:
    row = {"id": "a", "text": "one\u2028two\x85three", "fields": "{}"}
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert read_rows(tmp_path, limit=0) == [row]


def test_every_row_is_scored_once_in_every_metric(evaluation, tiny_dataset) -> None:
    lines = _lines(evaluation)
    ids = [row["id"] for row in read_rows(tiny_dataset, limit=LIMIT)]
    assert ids == sorted(ids) and len(ids) == LIMIT
    wanted = [("completion_perplexity", i, "nll") for i in ids]
    wanted += [("tool_call", i, metric) for i in ids for metric in ("exact", "valid")]
    assert [(line["task"], line["row_id"], line["metric"]) for line in lines] == sorted(wanted)
    assert all(line["tags"] == ["parameters=2"] and math.isfinite(line["score"]) for line in lines)


def test_each_prompt_is_the_one_that_training_rendered(evaluation, tiny_dataset, tiny_base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    rows = {row["id"]: row for row in read_rows(tiny_dataset, limit=0)}
    for line in _lines(evaluation):
        row = rows[line["row_id"]]
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert line["prompt_digest"] == hashlib.sha256(text.encode()).hexdigest()
        prompt_ids, completion_ids = _tokens_of_trl(tokenizer, row)
        (doc,) = documents(tokenizer, [row])
        assert tokenizer(doc["prompt_text"], add_special_tokens=False)["input_ids"] == prompt_ids
        assert (doc["prompt_tokens"], doc["completion_tokens"]) == (len(prompt_ids), len(completion_ids))


def test_the_tokens_that_reach_the_model_are_those_of_training_also_for_several_turns(tiny_base, monkeypatch) -> None:
    """White space at borders, special tokens in the text and braces must survive; nothing may be added in front."""
    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    (doc,) = documents(tokenizer, [_conversation("a")])
    prompt_ids, completion_ids = _tokens_of_trl(tokenizer, _conversation("a"))
    asked = harness_model(model, tokenizer, batch_size=1, rendered=True)
    ids, mask = asked.tok_batch_encode([doc["prompt_text"]])
    assert ids[0].tolist() == prompt_ids and bool(mask.all())
    pair = asked._encode_pair(doc["prompt_text"], doc["completion_text"])
    assert pair == (prompt_ids, completion_ids)
    assert doc["completion_tokens"] == len(completion_ids)
    with pytest.raises(ModelError, match="merges the end of a prompt"):
        asked._encode_pair("of ", "weather of Paris")


def test_the_likelihood_and_the_answer_are_the_models_own(evaluation, tiny_base, tiny_dataset) -> None:
    """Recomputed row by row without the harness, without batches and without padding."""
    import torch

    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    found = {(line["row_id"], line["metric"]): line for line in _lines(evaluation)}
    total = tokens = 0.0
    for row in read_rows(tiny_dataset, limit=LIMIT):
        rendered = render(tokenizer, row["prompt"], row["completion"])
        ids = torch.tensor([rendered.prompt_ids + rendered.completion_ids])
        start = len(rendered.prompt_ids)
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            answer = model.generate(ids[:, :start], max_new_tokens=8, do_sample=False)[0, start:]
        nll = -float(logprobs.gather(1, ids[0, start:, None]).sum())
        total, tokens = total + nll, tokens + len(rendered.completion_ids)
        line = found[row["id"], "nll"]
        assert line["score"] == pytest.approx(nll / len(rendered.completion_ids), rel=1e-4) and line["answer"] == ""
        assert found[row["id"], "valid"]["answer"] == tokenizer.decode(answer, skip_special_tokens=True)
    results = json.loads((evaluation / "results.json").read_text())
    metrics = results["tasks"]["completion_perplexity"]["metrics"]
    assert metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_the_results_name_model_rows_engine_and_size(evaluation, tiny_base, tiny_dataset) -> None:
    manifest = verify(evaluation, kind="evaluation")
    results, summary = (json.loads((evaluation / name).read_text()) for name in ("results.json", "summary.json"))
    assert results["model_digest"] == manifest.parents["model"]
    assert results["evaluation_rows_digest"] == sha256_file(tiny_dataset / "evaluation.jsonl")
    assert results["tasks"]["tool_call"]["rows"] == LIMIT and set(results["tasks"]["tool_call"]["metrics"]) == {
        "exact",
        "valid",
    }
    assert results["model_bytes"] == (tiny_base / "model.safetensors").stat().st_size
    assert results["engine"]["dtype"] == "float32" and results["engine"]["lm-eval"]
    assert summary["tool_call.valid"] == 0.0 and summary["rows"] == LIMIT
    assert "Answers" not in summary and "answers" in (evaluation / "page.html").read_text()


def test_progress_is_plain_lines(tiny_base, tiny_dataset, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # no git repository
    run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    out, err = capfd.readouterr()
    assert "6/6 rows answered" in out and "6/6 completions scored" in out
    assert "\x1b" not in out + err and "it/s" not in out + err and err == ""


def test_the_same_evaluation_gives_the_same_bytes_and_is_reused_by_its_digest(
    evaluation, tiny_base, tiny_dataset, tmp_path, monkeypatch
) -> None:
    kept = tmp_path / "kept"
    first = run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "first", reuse=kept)
    assert first.content_digest == verify(evaluation).content_digest
    assert len(list(kept.iterdir())) == len(SETTINGS.tasks)
    monkeypatch.setattr("tunegate.models.load.load_causal_lm", None)  # a second evaluation would fail
    second = run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "second", reuse=kept)
    assert second.content_digest == first.content_digest
    next(kept.rglob("measured.json")).write_text("{}")
    with pytest.raises(ArtifactError, match="not what its manifest says"):
        run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "third", reuse=kept)


ENGINE = {"name": "lm-evaluation-harness", "dtype": "float32", "device": "cpu"}
WORK = Work({"model": "m"}, {}, ENGINE)
FOUND = {"task": Measured({"exact": 0.5}, (), {}, 4)}


def test_a_kept_task_of_another_engine_is_not_used_and_is_replaced(tmp_path) -> None:
    gpu = Work(WORK.parents, WORK.settings, {**ENGINE, "dtype": "bfloat16", "device": "cuda"})
    keep(tmp_path, WORK, FOUND)
    assert kept(tmp_path, WORK) == FOUND and kept(tmp_path, gpu) is None
    keep(tmp_path, gpu, FOUND)
    assert kept(tmp_path, gpu) == FOUND and kept(tmp_path, WORK) is None
    assert [path.name for path in tmp_path.iterdir()] == [WORK.digest]


def test_an_unfinished_place_is_absent_and_one_of_another_name_is_refused(tmp_path) -> None:
    place = tmp_path / WORK.digest
    place.mkdir(parents=True)
    (place / "measured.json").write_text("half")
    assert kept(tmp_path, WORK) is None
    keep(tmp_path, WORK, FOUND)
    assert kept(tmp_path, WORK) == FOUND
    other = Work({"model": "other"}, {}, ENGINE)
    place.rename(tmp_path / other.digest)
    with pytest.raises(ArtifactError, match="another evaluation than its name says"):
        kept(tmp_path, other)


def test_another_process_may_keep_its_task_first(tmp_path, monkeypatch) -> None:
    place = tmp_path / WORK.digest
    monkeypatch.setattr("tunegate.evaluate.reuse.shutil.rmtree", lambda *args, **kwargs: _fill(place))
    keep(tmp_path, WORK, FOUND)
    assert (place / "theirs").is_file()


def _fill(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "theirs").touch()


def test_rows_without_ground_truth_are_refused_before_the_model_is_loaded(tiny_base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tunegate.evaluate.step._ask", None)
    dataset = _dataset(tmp_path / "data", [_conversation("a"), _conversation("b")])
    with pytest.raises(DataError, match="cannot score these rows") as caught:
        run(SETTINGS, model=tiny_base, dataset=dataset, output=tmp_path / "out")
    assert caught.value.exit_code == 2 and "row a" in caught.value.items[0] and not (tmp_path / "out").exists()


def test_a_text_row_has_a_likelihood_and_no_call(tiny_base, tmp_path) -> None:
    import torch

    dataset = _dataset(tmp_path / "data", [{"id": "a", "text": "weather in Paris", "fields": "{}"}])
    with pytest.raises(DataError, match="cannot score"):
        run(SETTINGS, model=tiny_base, dataset=dataset, output=tmp_path / "out")
    settings = EvaluateSettings(tasks=("completion_perplexity",))
    run(settings, model=tiny_base, dataset=dataset, output=tmp_path / "out")
    (line,) = _lines(tmp_path / "out")
    assert line["metric"] == "nll"
    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    ids = torch.tensor([[tokenizer.eos_token_id, *render_text(tokenizer, "weather in Paris")]])
    with torch.no_grad():
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
    assert line["score"] == pytest.approx(-float(logprobs.gather(1, ids[0, 1:, None]).mean()), rel=1e-4)


def test_a_text_row_without_anything_to_score_is_refused(tiny_base, tmp_path, no_loading) -> None:
    """The shortest row that has something: one token, and the end."""
    rows = [{"id": "a", "text": "", "fields": "{}"}, {"id": "b", "text": "x", "fields": "{}"}]
    assert [doc["completion_tokens"] for doc in documents(load_tokenizer(tiny_base), rows)] == [0, 2]
    settings = EvaluateSettings(tasks=("completion_perplexity",))
    with pytest.raises(DataError, match="nothing to score") as caught:
        run(settings, model=tiny_base, dataset=_dataset(tmp_path / "data", rows), output=tmp_path / "out")
    assert caught.value.items == ("row a",)


def test_tasks_of_the_harness_ask_none_of_our_rows(tiny_base, tmp_path, monkeypatch) -> None:
    """A row too long for the model does not matter to them."""
    row = _conversation("a")
    row["prompt"][1]["content"] = "word " * 600
    asked: list[int] = []

    def measure(task, settings, *, make_model, docs, templated):
        asked.append(len(docs))
        raise RunError("stop", seen="", expected="", remedy="")

    monkeypatch.setattr("tunegate.evaluate.step.measure", measure)
    settings = EvaluateSettings(tasks=("arc_easy",))
    with pytest.raises(RunError, match="stop"):
        run(settings, model=tiny_base, dataset=_dataset(tmp_path / "data", [row]), output=tmp_path / "out")
    assert asked == [0]


def test_fewer_rows_than_the_limit_asks_for_are_told(tiny_base, tmp_path, capsys, monkeypatch) -> None:
    settings = EvaluateSettings(tasks=("completion_perplexity",), limit=5, noise_rows=0)
    run(settings, model=tiny_base, dataset=_dataset(tmp_path / "data", [_conversation("a")]), output=tmp_path / "out")
    assert "1 evaluation rows, fewer than evaluate.limit" in capsys.readouterr().out


def test_a_row_that_the_context_would_cut_is_refused(tiny_base, tmp_path) -> None:
    row = _conversation("a")
    row["prompt"][1]["content"] = "word " * 600
    settings = EvaluateSettings(tasks=("completion_perplexity",))
    with pytest.raises(DataError, match="do not fit") as caught:
        run(settings, model=tiny_base, dataset=_dataset(tmp_path / "data", [row]), output=tmp_path / "out")
    assert "row a" in caught.value.items[0] and not (tmp_path / "out").exists()


def test_a_model_that_is_not_a_number_is_an_error_and_no_score(tiny_base, tiny_dataset, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    settings = EvaluateSettings(tasks=("completion_perplexity",), limit=2)
    with pytest.raises(RunError, match="not a number") as caught:
        run(settings, model=broken, dataset=tiny_dataset, output=tmp_path / "out")
    assert "log-likelihood is nan" in caught.value.seen
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", [(), ("tool_call", "tool_call")])
def test_no_task_or_one_twice_is_refused(tasks, tiny_base, tiny_dataset, tmp_path) -> None:
    with pytest.raises(SettingsError):
        run(EvaluateSettings(tasks=tasks), model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")


def test_an_output_of_other_settings_is_refused(evaluation, tiny_base, tiny_dataset) -> None:
    with pytest.raises(OutputExistsError):
        run(EvaluateSettings(limit=2), model=tiny_base, dataset=tiny_dataset, output=evaluation)


def test_a_folder_without_safetensors_is_refused(tiny_base, tiny_dataset, tmp_path) -> None:
    shutil.copytree(tiny_base, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError):
        run(SETTINGS, model=tmp_path / "model", dataset=tiny_dataset, output=tmp_path / "out")


def test_an_unknown_task_is_refused_and_the_nearest_is_named(tiny_base, tiny_dataset, tmp_path) -> None:
    with pytest.raises(SettingsError, match="tool_cal'") as caught:
        run(EvaluateSettings(tasks=("tool_cal",)), model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "tool_call" in caught.value.remedy and caught.value.exit_code == 2
