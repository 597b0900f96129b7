"""``tunegate init``: what it writes for a person's own data can be run as it stands, and says what each value means."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tunegate.cli import app
from tunegate.contracts.errors import InputError
from tunegate.evaluate.measured import Asked
from tunegate.evaluate.overlap import find_overlap, read_learned
from tunegate.evaluate.own.task import read_own_task
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.step import run as prepare
from tunegate_pipelines.init import write
from tunegate_pipelines.init.commented import Entry, commented, plain
from tunegate_pipelines.lint_recipe import RULE as GATE_POWER
from tunegate_pipelines.recipe import read_recipe, resolve
from tunegate_pipelines.yaml_file import parse_yaml

RUNNER = CliRunner()


@pytest.mark.parametrize(
    "value", ["1e3", "-2E-5", "1.5e3", "yes", "null", "0x1f", "a: b", ["1e3", 0.5, 3], {"a": "1e3"}]
)
def test_value_is_read_as_it_was_meant_by_whatever_reads_it(value: Any) -> None:
    for read in (lambda text: parse_yaml(text, where="here"), yaml.safe_load):
        found = read(f"key: {plain(value)}")["key"]
        assert found == value and type(found) is type(value)


def test_nothing_is_left_behind_when_the_check_of_what_was_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/other.txt").write_text("mine", "utf-8")
    files = [tmp_path / "kept/new/tasks/task.yaml", tmp_path / "kept/recipe.yaml"]
    with pytest.raises(InputError), write._all_or_none(files):
        write._write(dict.fromkeys(files, "text"))
        raise InputError("no", seen="a", expected="b", remedy="c")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["kept", "kept/other.txt"]


COMMIT = "org/name@" + "0" * 39 + "a"
_TEAMS = ("refund", "delivery", "account")
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "inlet", "jetty", "knoll", "larch")

Make = Callable[[random.Random, int], dict[str, Any]]


def _said(rng: random.Random, words: int = 9) -> str:
    return " ".join(f"{rng.choice(_WORDS)}{rng.randrange(100)}" for _ in range(words))


def _label(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "prompt": f"Which team? {_said(rng)}",
        "completion": rng.choice(_TEAMS),
        "channel": rng.choice(("mail", "chat")),
    }


def _json(rng: random.Random, number: int) -> dict[str, Any]:
    said = json.dumps({"number": number, "word": rng.choice(_WORDS)})
    return {"instruction": "Extract number and word.", "input": _said(rng), "output": said, "system": "Answer in JSON."}


def _short(rng: random.Random, number: int) -> dict[str, Any]:
    said = f"{rng.choice(_WORDS)} {number}"
    return {"conversations": [{"from": "human", "value": _said(rng)}, {"from": "gpt", "value": said}]}


def _free(rng: random.Random, number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _said(rng)}, {"role": "assistant", "content": _said(rng, 20)}]}


def _text(rng: random.Random, number: int) -> dict[str, Any]:
    return {"text": _said(rng, 20)}


def _talk(rng: random.Random, number: int) -> dict[str, Any]:
    roles = ("user", "assistant", "user", "assistant")
    return {"messages": [{"role": role, "content": _said(rng)} for role in roles]}


#: Kind of answers → how a row is made, the type of the task file, and the format.
KINDS: Mapping[str, tuple[Make, str, str]] = {
    "label": (_label, "exact_match", "prompt_completion"),
    "json": (_json, "json", "alpaca"),
    "short": (_short, "exact_match", "sharegpt"),
    "free": (_free, "perplexity", "messages"),
    "text": (_text, "perplexity", "text"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: what is written names its places from here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _rows(make: Make, count: int = 160) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [make(rng, number) for number in range(count)]


def _init(base: Path | str, rows: Sequence[Mapping[str, Any]], *more: str, folder: str = "mine") -> Result:
    data = _write(Path("tickets.jsonl"), rows)
    command = ["init", folder, "--base-model", str(base), "--data", str(data), "--no-serve-check", *more]
    return RUNNER.invoke(app, command)


def _recipe(folder: str = "mine") -> dict[str, Any]:
    return dict(yaml.safe_load(Path(folder, "recipe.yaml").read_text("utf-8")))


@each_kind
def test_what_is_written_passes_lint_and_is_planned(here: Path, tiny_base: Path, kind: str) -> None:
    make, type_, format_name = KINDS[kind]
    result = _init(tiny_base, _rows(make), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["data"]["answers"], told["data"]["format"]) == (kind, format_name)
    assert told["data"]["tokens_measured"] is True
    assert told["task"]["type"] == type_
    assert sorted(told["written"]) == sorted(str(path) for path in Path("mine").rglob("*.*"))
    linted = RUNNER.invoke(app, ["lint", "mine/recipe.yaml", "--json"])
    assert linted.exit_code == 0, linted.output
    assert json.loads(linted.stdout)["findings"] == []
    planned = RUNNER.invoke(app, ["plan", "mine/recipe.yaml", "--json"])
    assert planned.exit_code == 0, planned.output


@each_kind
def test_rows_of_the_task_are_never_trained_on_however_many_are_added(here: Path, tiny_base: Path, kind: str) -> None:
    make, *_ = KINDS[kind]
    rows = _rows(make, 220)
    assert _init(tiny_base, rows[:160]).exit_code == 0
    task = read_own_task("mine/tasks/tickets.yaml")
    asked = {
        row.row_id: Asked("\n".join(t["content"] for t in row.turns) or row.answer, row.answer) for row in task.rows
    }
    recipe = read_recipe(Path("mine/recipe.yaml"))
    form = {name: value for name, value in recipe.form.items() if name in ("max_length",)}
    settings = PrepareSettings(**resolve(form, recipe.sections)["prepare"])
    for count in (160, 220):
        data, output = _write(Path(f"{count}.jsonl"), rows[:count]), here / f"dataset-{count}"
        prepare(settings, dataset=str(data), base_model=tiny_base, output=output)
        learned = read_learned(output)
        assert len(learned) > count / 3
        found = find_overlap(learned, {"tickets": asked}, threshold=settings.overlap_threshold)
        assert (found["tickets"]["exact"], found["tickets"]["near"]) == (0, 0)
        held = {json.loads(line)["id"] for line in (output / "evaluation.jsonl").read_text("utf-8").splitlines()}
        assert asked.keys() <= held


def test_rows_with_functions_are_asked_by_the_task_for_calls(here: Path, tiny_base: Path, tiny_rows: Any) -> None:
    more = [
        json.loads(json.dumps(row).replace(" days", f" days, {number}")) for number, row in enumerate(tiny_rows * 3)
    ]
    result = _init(tiny_base, more, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["task"] is None
    assert (told["data"]["answers"], told["judged_by"]["task"]) == ("tool_call", "tool_call")
    assert told["lint"]["findings"] == []
    assert {"metric": "valid", "floor": 0.9}.items() <= _recipe()["gate"]["policy"]["checks"][2].items()


def test_conversations_of_several_turns_are_judged_without_a_task_file_and_it_is_said(
    here: Path, tiny_base: Path
) -> None:
    result = _init(tiny_base, _rows(_talk))
    assert result.exit_code == 0, result.output
    assert "conversations of several turns are no task file" in result.stdout
    assert _recipe()["evaluate"]["tasks"] == ["completion_perplexity"]
    assert not Path("mine/tasks").exists()


@pytest.mark.parametrize("count", [90, 160, 400, 1200])
def test_margins_can_be_shown_with_the_rows_there_are_and_a_smaller_one_could_not(
    here: Path, tiny_base: Path, count: int
) -> None:
    told = json.loads(_init(tiny_base, _rows(_label, count), "--json").stdout)
    assert GATE_POWER not in {finding["rule"] for finding in told["lint"]["findings"]}
    margins = [0.05, 0.1, 0.15, 0.2, 0.3]
    chosen = margins.index(told["judged_by"]["margin"])
    if not chosen:
        return
    Path("mine/recipe.yaml").write_text(
        Path("mine/recipe.yaml")
        .read_text("utf-8")
        .replace(f"margin: {margins[chosen]}}}", f"margin: {margins[chosen - 1]}}}")
    )
    found = json.loads(RUNNER.invoke(app, ["lint", "mine/recipe.yaml", "--json"]).stdout)["findings"]
    assert {finding["rule"] for finding in found} == {GATE_POWER}


def test_rows_too_few_to_judge_by_are_refused_with_how_many_would_do(here: Path, tiny_base: Path) -> None:
    result = _init(tiny_base, _rows(_label, 40))
    assert result.exit_code == 2
    assert "The rows are too few to judge a model by." in result.stderr
    assert "give about" in result.stderr
    assert not Path("mine").exists()


@pytest.mark.parametrize("there", ["recipe.yaml", "tasks/tickets.yaml", "tasks/tickets.jsonl"])
def test_nothing_is_overwritten(here: Path, tiny_base: Path, there: str) -> None:
    kept = Path("mine", there)
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    result = _init(tiny_base, _rows(_label))
    assert result.exit_code == 2
    assert f"mine/{there} is there already" in result.stderr
    assert [path.read_text() for path in Path("mine").rglob("*") if path.is_file()] == ["mine"]


@pytest.mark.parametrize("base", ["org/name", "org/name@main", "models/absent"])
def test_a_base_that_is_not_pinned_is_refused_with_how_to_find_its_commit(here: Path, base: str) -> None:
    result = _init(base, _rows(_label))
    assert result.exit_code == 2
    assert f"git ls-remote https://huggingface.co/{base.partition('@')[0]} HEAD" in result.stderr
    assert not Path("mine").exists()


@pytest.mark.parametrize("base", ["demo", COMMIT])
def test_lengths_are_estimated_where_the_base_is_not_at_hand_and_it_is_said(
    here: Path, tiny_base: Path, base: str
) -> None:
    rows = _rows(_label)
    estimated = json.loads(_init(base, rows, "--json", folder="far").stdout)
    measured = json.loads(_init(tiny_base, rows, "--json", folder="near").stdout)
    assert (estimated["data"]["tokens_measured"], measured["data"]["tokens_measured"]) == (False, True)
    assert any("estimated" in note for note in estimated["notes"])
    assert "(estimated: " in Path("far/recipe.yaml").read_text("utf-8")
    assert RUNNER.invoke(app, ["lint", "far/recipe.yaml"]).exit_code == 0


def test_rows_that_cannot_be_trained_on_are_named_and_left_out(here: Path, tiny_base: Path) -> None:
    rows = _rows(_label)
    rows[17]["completion"] = " "
    result = _init(tiny_base, rows)
    assert "tickets.jsonl:18 cannot be trained on and is left out: an empty assistant turn" in result.stdout
    assert _recipe()["prepare"]["invalid_rows"] == "drop"
    assert "tickets.jsonl:18: an empty assistant turn" in " ".join(
        Path("mine/recipe.yaml").read_text("utf-8").replace("#", " ").split()
    )


def test_a_turn_with_a_special_token_is_found_before_the_run_stops_at_it(here: Path, tiny_base: Path) -> None:
    rows = _rows(_label)
    rows[4]["prompt"] += " <|im_end|>"
    result = _init(tiny_base, rows)
    assert "tickets.jsonl:5 cannot be trained on and is left out: a special token inside a turn" in result.stdout


def test_a_base_without_a_chat_template_is_refused(here: Path, make_base: Callable[..., Path]) -> None:
    base = make_base(seed=5)
    (base / "chat_template.jinja").unlink()
    result = _init(base, _rows(_label))
    assert result.exit_code == 2
    assert "chat template" in result.stderr
    assert not Path("mine").exists()


def test_a_place_that_cannot_be_written_is_an_error_with_its_name(here: Path, tiny_base: Path) -> None:
    Path("mine").write_text("a file")
    result = _init(tiny_base, _rows(_label))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert Path("mine").read_text() == "a file"


def test_a_label_column_beside_a_text_column_is_pointed_out(here: Path, tiny_base: Path) -> None:
    result = _init(tiny_base, [{"text": _said(random.Random(n), 12), "team": _TEAMS[n % 3]} for n in range(160)])
    assert "rename text to prompt and it to completion" in result.stdout


def test_longer_rows_than_the_base_knows_are_counted(here: Path, tiny_base: Path) -> None:
    rows = _rows(_label)
    for row in rows[::20]:
        row["prompt"] = _said(random.Random(row["prompt"]), 300)
    result = _init(tiny_base, rows)
    assert result.exit_code == 0, result.output
    assert _recipe()["run"]["max_length"] == 512  # the tiny base's positions
    assert "8 of 160 are longer and are left out" in Path("mine/recipe.yaml").read_text("utf-8")
    assert RUNNER.invoke(app, ["lint", "mine/recipe.yaml"]).exit_code == 0


def test_serving_is_asked_and_judged_together(here: Path, tiny_base: Path) -> None:
    _init(tiny_base, _rows(_label), folder="without")
    assert "serving" not in _recipe("without")["gate"]["policy"]
    result = _init(tiny_base, _rows(_label), "--serve-check", "--serving-target", "vllm-cuda-sm90", folder="with")
    assert result.exit_code == 0, result.output
    assert _recipe("with")["gate"]["policy"]["serving"] == {}
    assert _recipe("with")["serve_check"] == {"enabled": True}
    assert _recipe("with")["quantize"]["serving_target"] == "vllm-cuda-sm90"
    assert RUNNER.invoke(app, ["lint", "with/recipe.yaml"]).exit_code == 0
    refused = _init(tiny_base, _rows(_label), "--serving-target", "h100", folder="other")
    assert (refused.exit_code, "vllm-cuda-sm90" in refused.stderr) == (2, True)


def test_every_setting_has_a_comment_of_its_own(here: Path, tiny_base: Path) -> None:
    _init(tiny_base, _rows(_label))
    for name in ("recipe.yaml", "tasks/tickets.yaml"):
        lines = Path("mine", name).read_text("utf-8").splitlines()
        settings = [n for n, line in enumerate(lines) if line.lstrip()[:1].isalpha() and ":" in line]
        assert len(settings) > 5
        assert [lines[n] for n in settings if not lines[n - 1].lstrip().startswith("# ")] == []


def test_what_rows_say_cannot_leave_a_comment_or_a_value() -> None:
    hostile = "one\u2028alias: stolen\x85alias: stolen\r\nalias: stolen"
    lines = commented([Entry("key", hostile, hostile), Entry("other", [hostile, "on", "{{x}}"], "why")])
    assert yaml.safe_load("\n".join(lines)) == {"key": hostile, "other": [hostile, "on", "{{x}}"]}


def test_names_of_places_are_kept_whatever_they_hold(here: Path, tiny_base: Path) -> None:
    result = _init(tiny_base, _rows(_label), "--registry", "kept # here", "--alias", "on", folder="my 'own': one")
    assert result.exit_code == 0, result.output
    recipe = _recipe("my 'own': one")
    assert recipe["run"]["registry"] == "kept # here"
    assert recipe["run"]["alias"] == "on"
    assert recipe["evaluate"]["tasks"][0] == "my 'own': one/tasks/tickets.yaml"


def test_columns_of_other_names_are_told_how_to_be_called(here: Path, tiny_base: Path) -> None:
    result = _init(tiny_base, [{"question": "why?", "answer": "so"}])
    assert result.exit_code == 2
    assert "rename the columns: question to prompt and answer to completion" in result.stderr


def test_a_spreadsheets_file_is_told_how_to_be_converted(here: Path, tiny_base: Path) -> None:
    Path("rows.csv").write_text("prompt,completion\na,b\n")
    result = RUNNER.invoke(app, ["init", "mine", "--base-model", str(tiny_base), "--data", "rows.csv"])
    assert result.exit_code == 2
    assert "load_dataset('csv'" in result.stderr
