"""A user's own task, one YAML file and one data file: parsed strictly, asked as training rendered, scored right."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.contracts.errors import DataError, RunError, SettingsError
from tunegate.evaluate.own.scorer import load_scorer
from tunegate.evaluate.own.scores import scores_of
from tunegate.evaluate.own.task import OwnTask, read_own_task
from tunegate.evaluate.own.task_file import ALL_KEYS, KEYS
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.models.load import load_tokenizer

ROWS: list[dict[str, Any]] = [
    {"country": "France", "capital": "Paris", "continent": "Europe", "others": ["Lyon", "Paris"]},
    {"country": "Peru", "capital": "Lima", "continent": "America", "others": ["Lima", "Cusco", "Quito"]},
    {"country": "{{7*7}}", "capital": "Oslo [x]", "continent": None, "others": ["Oslo [x]", "Perth"]},
]
CAPITALS: dict[str, Any] = {
    "name": "capitals", "type": "exact_match", "data": "capitals.jsonl",
    "prompt": "What is the capital of {{country}}?", "answer": "{{capital}}",
}  # fmt: skip


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CAPITALS.items() if key != name}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a task and its rows, and returns the task file's path."""

    def write(task: dict[str, Any] | None = None, rows: Any = ROWS, **more: Any) -> str:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "capitals.jsonl").write_text(text, "utf-8")
        (folder / "capitals.yaml").write_text(yaml.safe_dump({**(task or CAPITALS), **more}), "utf-8")
        return str(folder / "capitals.yaml")

    return write


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with scorers, and a module beside it that nobody installed."""
    site = tmp_path / "site"
    (site / "own_scorers").mkdir(parents=True)
    source = "def length(row, answer):\n    return len(answer)\n\ndef broken(row, answer):\n    return row['absent']\n"
    (site / "own_scorers/__init__.py").write_text(source)
    (site / "loose.py").write_text(source)
    info = site / "own_scorers-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-scorers\nVersion: 1.2\n")
    (info / "RECORD").write_text("own_scorers/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("own_scorers", None)


def test_every_type_is_scored_by_the_real_harness_on_the_same_rows(written, scorers, tiny_base, tmp_path) -> None:
    import pyarrow.parquet as pq

    kinds: dict[str, dict[str, Any]] = {
        "exact_match": {},
        "multiple_choice": {"choices": "others"},
        "regex": {"pattern": "[a-z]+", "answer": ""},
        "json": {"answer": "{{country | tojson}}"},
        "perplexity": {},
        "python": {"scorer": "own_scorers:length", "score_range": [0, 500]},
    }
    paths = []
    for kind, more in kinds.items():
        path = written(name=f"own_{kind}", type=kind, tags=["continent"], **more)
        paths.append(str(Path(path).rename(Path(path).with_name(f"{kind}.yaml"))))
    settings = EvaluateSettings(tasks=tuple(paths), max_new_tokens=4, noise_rows=2)
    run(settings, model=tiny_base, dataset=None, output=tmp_path / "out")

    lines = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    found = {(line["task"], line["metric"]) for line in lines}
    assert found == {
        ("own_exact_match", "exact"), ("own_multiple_choice", "acc"), ("own_multiple_choice", "acc_norm"),
        ("own_regex", "match"), ("own_json", "valid"), ("own_json", "exact"), ("own_perplexity", "nll"),
        ("own_python", "score"),
    }  # fmt: skip
    assert len(lines) == len(found) * len(ROWS) and {len(line["tags"]) for line in lines} == {1}
    assert {line["tags"][0] for line in lines} == {"continent=Europe", "continent=America", "continent=null"}
    prompts = {(line["row_id"], line["prompt_digest"]) for line in lines}
    assert len(prompts) == len(ROWS), "each row has one id and one prompt, whatever is asked of it"
    for line in lines:
        if line["metric"] == "score":
            assert line["score"] == len(line["answer"])
        if line["metric"] == "acc":
            assert line["answer"] in {option for row in ROWS for option in row["others"]}
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["tasks"]["own_python"]["made_of"]["scorer"] == "own-scorers==1.2"
    assert results["tasks"]["own_regex"]["rows_of"] == "task" and results["overlap"] is None
    assert results["noise"]["own_exact_match"]["rows"] == 2
    assert not (tmp_path / "out.tasks").exists()


def test_the_likelier_choice_is_the_one_that_the_model_itself_finds_likelier(written, tiny_base, tmp_path) -> None:
    """The whole answer is scored with the end of its turn; recomputed without harness, batches or padding."""
    import pyarrow.parquet as pq
    import torch

    from tunegate.models.chat import render
    from tunegate.models.load import load_causal_lm

    path = written(type="multiple_choice", choices="others", row_id="country")
    run(EvaluateSettings(tasks=(path,)), model=tiny_base, dataset=None, output=tmp_path / "out")
    lines = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    chosen = {line["row_id"]: line["answer"] for line in lines if line["metric"] == "acc"}
    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    for row in ROWS:
        prompt = [{"role": "user", "content": f"What is the capital of {row['country']}?"}]
        likelihoods = []
        for option in row["others"]:
            rendered = render(tokenizer, prompt, [{"role": "assistant", "content": option}])
            ids, start = torch.tensor([rendered.prompt_ids + rendered.completion_ids]), len(rendered.prompt_ids)
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            likelihoods.append(float(logprobs.gather(1, ids[0, start:, None]).sum()))
        assert chosen[row["country"]] == row["others"][likelihoods.index(max(likelihoods))]


@pytest.mark.parametrize(
    ("kind", "more", "answer", "scores"),
    [
        ("exact_match", {}, " Paris\n", {"exact": 1.0}),
        ("exact_match", {}, "paris", {"exact": 0.0}),
        ("exact_match", {"ignore_case": True}, "PARIS", {"exact": 1.0}),
        ("exact_match", {}, "Paris.", {"exact": 0.0}),
        ("regex", {"pattern": "is (\\w+)"}, "It is Paris.", {"match": 1.0}),
        ("regex", {"pattern": "is (\\w+)"}, "It is Lyon.", {"match": 0.0}),
        ("regex", {"pattern": "is (\\w+)"}, "Paris", {"match": 0.0}),
        ("regex", {"pattern": "p\\w+", "ignore_case": True}, "It is PARIS.", {"match": 1.0}),
        ("regex", {"pattern": "is", "answer": ""}, "Paris", {"match": 1.0}),
        (
            "json",
            {"answer": '{"a": [1, true], "b": 0}'},
            ' {"b": 0, "a": [1.0, true]}',
            {"valid": 1, "exact": 1},
        ),
        ("json", {"answer": '{"a": 1}'}, '{"a": true}', {"valid": 1.0, "exact": 0.0}),
        ("json", {"answer": '{"a": 1}'}, '```{"a": 1}```', {"valid": 0.0, "exact": 0.0}),
        ("json", {"answer": '{"a": 1}'}, '{"a": NaN}', {"valid": 0.0, "exact": 0.0}),
    ],
)
def test_an_answer_is_worth_what_its_type_says(written, kind: str, more: Any, answer: str, scores: Any) -> None:
    task = read_own_task(written(rows=ROWS[:1], type=kind, **more))
    doc = {"expected": task.rows[0].answer, "fields": "{}", "row_id": "a"}
    assert scores_of(task)(doc, [answer]) == scores


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"type": "exact"}, "did you mean 'exact_match'"),
        ({"type": "exactmatch", "answer": "x"}, "exact_match"),
        ({"pattern": "x"}, "pattern means nothing here"),
        ({"answer": ""}, "answer is missing"),
        ({"prompt": ""}, "prompt is missing"),
        ({"prompt": "{{country"}, "user turn: line 1"),
        ({"name": "my task"}, "a-z, 0-9 and _ only"),
        ({"data": "../rows.jsonl"}, "without '..'"),
        ({"data": "/etc/passwd"}, "a relative POSIX path"),
        ({"messages": [{"role": "user", "content": "x"}]}, "stands in place of prompt"),
        ({"prompt": "", "messages": [{"role": "bot", "content": "x"}]}, "role is one of"),
        ({"prompt": "", "messages": [{"role": "assistant", "content": "x"}]}, "not the user's"),
        ({"type": "regex", "pattern": "("}, "pattern: "),
        ({"type": "regex", "pattern": "(a)(b)"}, "several groups"),
        ({"type": "multiple_choice", "choices": 3}, "neither a list"),
        ({"type": "python", "scorer": "./score.py:f", "score_range": [0, 1]}, "never a path"),
        ({"type": "python", "scorer": "a:f", "score_range": [1, 0]}, "[lowest, highest]"),
    ],
)
def test_a_task_file_that_cannot_be_meant_is_refused_and_says_what_to_write(written, change: Any, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_own_task(written(**change))
    assert says in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ("", {}, "the file is empty"),
        ("[1]\n", {}, "line 1: list"),
        ("{\n", {}, "line 1"),
        ([{"country": "France"}], {}, "'capital' is undefined"),
        ([ROWS[0], ROWS[0]], {}, "comes more than once"),
        ([ROWS[0], {**ROWS[1], "country": "France"}], {"row_id": "country"}, "'France' comes more than once"),
        (ROWS, {"row_id": "others"}, "names no row"),
        (ROWS, {"tags": ["others"]}, "names no slice"),
        (ROWS, {"tags": ["absent"]}, "no column 'absent'"),
        (ROWS, {"type": "multiple_choice", "choices": ["Lyon", "Lima"]}, "is none of the choices"),
        (ROWS, {"type": "multiple_choice", "choices": "country"}, "is no list of texts"),
        (ROWS, {"type": "json"}, "is no JSON"),
        (ROWS, {"type": "tool_call", "answer": ""}, "no 'functions'"),
        (ROWS, {"prompt": "{{country.__class__.__mro__}}"}, "is unsafe"),
        (ROWS, {"prompt": "{{ ' ' }}"}, "turn is empty"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(written, rows: Any, more: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_own_task(written(rows=rows, **more))
    assert any(says in item for item in caught.value.items), caught.value.items


def test_what_a_row_says_is_text_and_never_a_template(written) -> None:
    task = read_own_task(written(row_id="capital"))
    assert [row.turns[0]["content"] for row in task.rows if "49" in str(row.turns) or "7*7" in str(row.turns)] == [
        "What is the capital of {{7*7}}?"
    ]


def test_a_scorer_is_of_an_installed_distribution_and_never_a_loose_file(scorers) -> None:
    scorer = load_scorer("own_scorers:length")
    assert scorer.distribution == "own-scorers==1.2" and len(scorer.sha256) == 64
    for name in ("loose:length", "own_scorers:absent", "own_scorers.absent:length", "json:dumps"):
        with pytest.raises(SettingsError):
            load_scorer(name)


def test_a_module_that_hides_an_installed_one_is_refused(scorers, tmp_path, monkeypatch) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "own_scorers.py").write_text("def length(row, answer):\n    return 1\n")
    monkeypatch.syspath_prepend(str(hiding))
    with pytest.raises(SettingsError, match="cannot be used") as caught:
        load_scorer("own_scorers:length")
    assert "not a file that" in caught.value.seen


def test_a_score_that_is_none_ends_the_step(scorers) -> None:
    for name in ("broken", "length"):
        with pytest.raises(RunError, match="gives no score") as caught:
            load_scorer(f"own_scorers:{name}").score({}, "x" * 9, row_id="r7", score_range=(0.0, 5.0))
        assert "row r7" in caught.value.seen


def _digest(task: OwnTask) -> str:
    return task.digest


def test_a_task_is_known_by_what_it_asks_and_not_by_where_it_lies(written, tmp_path) -> None:
    known = _digest(read_own_task(written()))
    path = Path(written())
    path.write_text(f"# a comment\n{path.read_text()}")
    moved = path.parent.rename(tmp_path / "elsewhere")
    assert _digest(read_own_task(str(moved / path.name))) == known
    assert _digest(read_own_task(written(rows=[*ROWS[1:], ROWS[0]]))) == known
    assert _digest(read_own_task(written(prompt="Capital of {{country}}?"))) != known
    assert _digest(read_own_task(written(rows=[{**ROWS[0], "capital": "Lyon"}, *ROWS[1:]]))) != known


def test_a_task_in_a_bucket_is_the_same_task(written, gcs_bucket) -> None:
    from tunegate.storage.open import open_storage

    path = Path(written())
    storage = open_storage(f"{gcs_bucket}/team/tasks")
    for name in ("capitals.yaml", "capitals.jsonl"):
        storage.write(name, (path.parent / name).read_bytes(), if_generation_match=0)
    assert read_own_task(f"{gcs_bucket}/team/tasks/capitals.yaml").digest == read_own_task(str(path)).digest
    with pytest.raises(SettingsError, match="cannot be read"):
        read_own_task(f"{gcs_bucket}/team/tasks/absent.yaml")


def test_every_key_belongs_to_a_type(written) -> None:
    """No key is accepted and ignored."""
    used = {"name", "type", "data", "row_id", "tags", "prompt", "system", "messages"}
    assert used.union(*(needed | optional for needed, optional in KEYS.values())) == set(ALL_KEYS)
