"""The token that begins a sequence comes once, though the template writes it and the tokenizer adds it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.evaluate.asked import task_manager
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run

BOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def beginning(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a tokenizer that adds the first token, and a template that writes it, as Llama 3 has them."""
    import shutil

    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("beginning") / "model"
    shutil.copytree(tiny_base, folder)
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(folder))
    tokenizer.bos_token, tokenizer.pad_token = BOS, "<|im_end|>"
    first = (BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[first])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    assert tokenizer("x")["input_ids"][0] == first[1], "otherwise this would show nothing"
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every row of token ids that reaches the model for the first time, without padding."""
    from lm_eval.models.huggingface import HFLM

    rows: list[list[int]] = []
    generate = HFLM._model_generate

    def watched(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].bool()
        rows.extend(row[kept].tolist() for row, kept in zip(context, mask, strict=True))
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_generate", watched)
    return rows


def _harness_task(folder: Path) -> None:
    """A task as the harness has its own: its prompt is a template, which the harness renders with the chat template."""
    (folder / "rows.jsonl").write_text(json.dumps({"q": "What is the capital of Peru?", "a": "Lima", "tags": 3}) + "\n")
    config = {
        "task": "foreign", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "arrow")},
        "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "foreign.yaml").write_text(yaml.safe_dump(config))


def _own_task(folder: Path) -> str:
    (folder / "own.jsonl").write_text(json.dumps({"q": "What is the capital of Peru?"}) + "\n")
    own = {"name": "own", "type": "exact_match", "data": "own.jsonl", "prompt": "{{q}}", "answer": "Lima"}
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    return str(folder / "own.yaml")


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_the_first_token_comes_once(kind, beginning, tiny_dataset, tmp_path, seen, monkeypatch) -> None:
    _harness_task(tmp_path)
    for place in ("asked", "harness"):
        monkeypatch.setattr(f"tunegate.evaluate.{place}.known_tasks", lambda: task_manager(str(tmp_path)))
    name = _own_task(tmp_path) if kind == "own" else "foreign"
    settings = EvaluateSettings(tasks=(name,), max_new_tokens=4, noise_rows=0)
    run(settings, model=beginning, dataset=tiny_dataset, output=tmp_path / "out")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(beginning)
    turns = [{"role": "user", "content": "What is the capital of Peru?"}]
    wanted = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert seen == [wanted["input_ids"]] and seen[0].count(tokenizer.bos_token_id) == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["tasks"][kind]["rows"] == 1 and results["overlap"][kind]["exact"] == 0


def test_a_task_of_the_harness_is_compared_with_the_train_rows_by_its_bare_question(
    tiny_base, tiny_dataset, tmp_path, monkeypatch
) -> None:
    from tunegate.evaluate.overlap import read_learned

    _harness_task(tmp_path)
    question = read_learned(tiny_dataset)[0]["prompt"][-1]["content"]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": question, "a": "Lima", "tags": 3}) + "\n")
    for place in ("asked", "harness"):
        monkeypatch.setattr(f"tunegate.evaluate.{place}.known_tasks", lambda: task_manager(str(tmp_path)))
    settings = EvaluateSettings(tasks=("foreign",), noise_rows=1)
    run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["overlap"]["foreign"]["exact"] == 1 and results["noise"]["foreign"]["rows"] == 1
    assert results["tasks"]["foreign"]["rows_of"] == "task"


def test_a_document_that_a_task_of_the_harness_has_twice_is_asked_twice_and_ends_nothing(
    tiny_base, tiny_dataset, tmp_path, monkeypatch
) -> None:
    """All rows are asked again for the noise floor, too: they are the same rows."""
    import pyarrow.parquet as pq

    _harness_task(tmp_path)
    once, digests = (tmp_path / "rows.jsonl").read_text(), []
    for place in ("asked", "harness"):
        monkeypatch.setattr(f"tunegate.evaluate.{place}.known_tasks", lambda: task_manager(str(tmp_path)))
    settings = EvaluateSettings(tasks=("foreign",), max_new_tokens=4, noise_rows=3)
    for number, other in enumerate(("Oslo", "Rome")):
        (tmp_path / "rows.jsonl").write_text(once + json.dumps({"q": "Where?", "a": other, "tags": 3}) + "\n" + once)
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / f"out{number}")
        results = json.loads((tmp_path / f"out{number}/results.json").read_text())
        digests.append(results["rows_digest"])
    assert results["tasks"]["foreign"]["rows"] == 3 and results["noise"]["foreign"]["rows"] == 3
    rows = {row["row_id"]: row for row in pq.read_table(tmp_path / "out1/rows.parquet").to_pylist()}
    (twin,) = (row for row in rows if row.endswith("-2"))
    assert len(rows) == 3 and rows[twin]["answer"] == rows[twin.removesuffix("-2")]["answer"]
    assert digests[0] != digests[1], "other data under the same name are other rows"
