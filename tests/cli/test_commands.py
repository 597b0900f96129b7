"""All commands together: each explains itself, answers scripts too, and documents name none that is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from tunegate.cli import app

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


def _walk(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, by the words that call it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in children.items():
        yield from _walk(child, (*words, name))


COMMANDS = dict(_walk(typer.main.get_command(app)))

#: Commands that serve until they are stopped and have no result; ``deployed --json`` tells what one does.
GO_ON = {("fleet", "serve")}
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@each_command
def test_command_explains_itself_and_every_argument(words: tuple[str, ...]) -> None:
    result = RUNNER.invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert COMMANDS[words].help
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "help", None), f"{parameter.name} of {' '.join(words)} is not explained"


@pytest.mark.parametrize("words", sorted(COMMANDS.keys() - GO_ON), ids=" ".join)
def test_command_answers_scripts(words: tuple[str, ...]) -> None:
    assert "--json" in {option for parameter in COMMANDS[words].params for option in parameter.opts}


@each_command
def test_unknown_option_exits_2(words: tuple[str, ...]) -> None:
    assert RUNNER.invoke(app, [*words, "--no-such-option"]).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_names_the_commands(shell: str) -> None:
    asked = {"_TUNEGATE_COMPLETE": f"complete_{shell}", "COMP_WORDS": "tunegate re", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "tunegate re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    shown = RUNNER.invoke(app, [], prog_name="tunegate", env=asked)
    assert {"registry", "report"} <= set(re.findall(r"[a-z]+", shown.output)), shown.output


def test_shell_completion_that_the_readme_names_is_what_bash_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell is the one that is named, not the one that started the tests."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert 'eval "$(.venv/bin/tunegate --show-completion bash)"' in (ROOT / "README.md").read_text("utf-8")
    shown = RUNNER.invoke(app, ["--show-completion", "bash"], prog_name="tunegate")
    assert shown.exit_code == 0
    read = subprocess.run(
        ["bash", "-c", 'eval "$0"; complete -p tunegate', shown.stdout], capture_output=True, text=True
    )
    assert "-F _tunegate_completion tunegate" in read.stdout, read.stderr


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_document_names_only_commands_that_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    named = {tuple(found.split()) for part in code for found in re.findall(r"\btunegate ((?:[a-z]+ ?){1,2})", part)}
    for words in named:
        assert words in COMMANDS or words[:1] in COMMANDS, f"{document} names tunegate {' '.join(words)}"


def test_report_shows_what_a_run_left_and_writes_nothing(tmp_path: Path, tiny_dataset: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "mine/kfp/dataset")
    before = sorted(tmp_path.rglob("*"))
    shown = RUNNER.invoke(app, ["report", str(tmp_path / "mine"), "--json"])
    assert shown.exit_code == 0, shown.output
    manifest = json.loads((tiny_dataset / "manifest.json").read_text("utf-8"))
    told = json.loads(shown.stdout)
    assert told["artifacts"]["dataset"]["content_digest"] == manifest["content_digest"]
    assert told["decision"] is None
    assert "index.html" in RUNNER.invoke(app, ["report", str(tmp_path / "mine")]).stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("made", [True, False])
def test_report_of_a_folder_without_a_run_exits_2_and_says_why(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "mine").mkdir()
    result = RUNNER.invoke(app, ["report", str(tmp_path / "mine"), "--json"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert ("no finished artifact in it" if made else "no such folder") in result.stderr


def test_compile_says_to_a_script_where_it_wrote(tmp_path: Path) -> None:
    target = tmp_path / "promote.yaml"
    shown = RUNNER.invoke(app, ["compile", "--pipeline", "promote", "--output", str(target), "--json"])
    assert json.loads(shown.stdout) == {"pipeline": "promote", "written": str(target)}
    assert target.is_file()
