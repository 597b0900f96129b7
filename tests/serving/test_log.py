"""The log of a server that ended: what went wrong is told, not what it led to."""

from __future__ import annotations

from pathlib import Path

from tunegate.serving.log import last_line, telling_lines


def test_the_cause_is_told_and_not_that_there_is_one(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text(
        "(EngineCore pid=18460) INFO 11-24 04:55:02 [core.py:121] Initializing a V1 LLM engine\n"
        "(EngineCore pid=18460) ERROR 11-24 04:55:40 [core.py:1172] Traceback (most recent call last):\n"
        '(EngineCore pid=18460) ERROR 11-24 04:55:40 [core.py:1172]   File "model.py", line 7, in load\n'
        "(EngineCore pid=18460) ERROR 11-24 04:55:40 [core.py:1172] torch.OutOfMemoryError: no memory is left\n"
        "(EngineCore pid=18460) torch.OutOfMemoryError: no memory is left\n"
        "(APIServer pid=17643) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "nanobind: leaked 4 instances!\n"
        "resource_tracker.py:254: UserWarning: there appear to be 1 leaked semaphore objects\n",
        "utf-8",
    )
    assert telling_lines(log) == ["torch.OutOfMemoryError: no memory is left"]


def test_a_wrong_option_is_told_as_the_server_says_it(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --max-lora\n", "utf-8")
    assert telling_lines(log) == ["api_server.py: error: unrecognized arguments: --max-lora"]


def test_without_an_error_the_end_is_told(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text("one\n(EngineCore pid=7) INFO 11-24 04:55:02 [core.py:121] two\n\n", "utf-8")
    assert telling_lines(log) == ["one", "two"]
    assert last_line(log) == "two"


def test_a_log_that_was_never_written_tells_nothing(tmp_path: Path) -> None:
    assert telling_lines(tmp_path / "serve.log") == []
    assert last_line(tmp_path / "serve.log") == ""
