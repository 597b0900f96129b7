"""Follows a local run: keeps every line in a log file, and shows a person progress, news and the error alone."""

from __future__ import annotations

import io
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tunegate.contracts.errors import ERROR_LINE, GateRefused, TunegateError, error_from_line
from tunegate.contracts.progress import NEWS_LINE, PROGRESS_LINE

TAIL_LINES = 25
#: How often one task's progress is printed where there is no terminal to draw a bar on.
PLAIN_INTERVAL_SECONDS = 15.0

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '(?P<task>[\w-]+)'")
_ENDED = re.compile(r"Task '(?P<task>[\w-]+)' finished with status (?P<status>\w+)")


class RunStopped(Exception):
    """Leaves kfp.local after a step failed: it would go on with every task that does not depend on that step."""


class View(Protocol):
    """How a run is shown."""

    def started(self, task: str) -> None: ...
    def progress(self, task: str, done: int, total: int, unit: str, facts: str) -> None: ...
    def news(self, task: str, text: str) -> None: ...
    def ended(self, task: str, succeeded: bool, seconds: float) -> None: ...
    def close(self) -> None: ...


class Follower(io.TextIOBase):
    """Stands in for standard output while kfp.local runs.

    Args:
        log: where every line is kept.
        view: where lines of progress and news are shown.
        speakers: whose lines are shown: names that steps use in ``[name]``.
        labels: task → what a person calls it, where that is another word.
        stop: whether somebody asked the run to stop; then no further task is started.

    Attributes:
        error: what a step reported, read back from its line.
        failed_task: the task that ended in failure.
        tail: the last lines of that task, for a failure that reported nothing.
    """

    def __init__(
        self,
        log: TextIO,
        view: View,
        speakers: frozenset[str],
        labels: Mapping[str, str],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.error: TunegateError | None = None
        self.failed_task = ""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._log, self._view, self._speakers, self._labels = log, view, speakers, labels
        self._stop, self._running = stop, False
        self._pending, self._started = "", 0.0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._must_stop():
            raise RunStopped
        self._pending += text
        *lines, self._pending = self._pending.split("\n")
        for line in lines:
            self._take(line.rsplit("\r", 1)[-1])
        return len(text)

    def _must_stop(self) -> bool:
        """A refusal by the gate is an ending like any other, and the exit handler follows it."""
        if isinstance(self.error, GateRefused):
            return False
        return self.error is not None or bool(self.failed_task) or (self._stop() and not self._running)

    def _take(self, raw: str) -> None:
        self._log.write(raw + "\n")
        self._log.flush()
        line = _COLOUR.sub("", raw).strip()
        if ERROR_LINE in line:
            self.error = self.error or error_from_line(line)
        elif found := PROGRESS_LINE.match(line):
            if found["task"] in self._speakers:
                self._view.progress(
                    found["task"], int(found["done"]), int(found["total"]), found["unit"], found["facts"] or ""
                )
        elif found := NEWS_LINE.match(line):
            if found["task"] in self._speakers:
                self._view.news(found["task"], found["news"])
        elif found := _STARTED.search(line):
            self._started, self._running = time.monotonic(), True
            self.tail.clear()
            self._view.started(self._label(found["task"]))
        elif found := _ENDED.search(line):
            succeeded, self._running = found["status"] == "SUCCESS", False
            self._view.ended(self._label(found["task"]), succeeded, time.monotonic() - self._started)
            if not succeeded:
                self.failed_task = self.failed_task or found["task"]
        if line and not self.failed_task:
            self.tail.append(line)

    def _label(self, task: str) -> str:
        return self._labels.get(task, task)


class PlainView:
    """Lines, for a log file, a pipe or a continuous-integration run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, float] = {}

    def started(self, task: str) -> None:
        self._shown.clear()

    def progress(self, task: str, done: int, total: int, unit: str, facts: str) -> None:
        now = time.monotonic()
        if done < total and now - self._shown.get(task, 0.0) < PLAIN_INTERVAL_SECONDS:
            return
        self._shown[task] = now
        self._print(f"{task:>10} │ {done}/{total} {unit}" + (f" · {facts}" if facts else ""))

    def news(self, task: str, text: str) -> None:
        self._print(f"{task:>10} │ {text}")

    def ended(self, task: str, succeeded: bool, seconds: float) -> None:
        self._print(f"{'✓' if succeeded else '✗'} {task} ({duration(seconds)})")

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class TerminalView:
    """A bar that moves, with the rate and what the step says of itself; news stays above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:>10} │"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
        )
        self._bars.start()
        self._open: dict[str, tuple[TaskID, float]] = {}

    def started(self, task: str) -> None:
        self._clear()

    def progress(self, task: str, done: int, total: int, unit: str, facts: str) -> None:
        key = f"{task} {unit}"
        if key not in self._open:
            bar = self._bars.add_task(task, total=total, unit=unit, rate="", facts="")
            self._open[key] = (bar, time.monotonic())
        bar, start = self._open[key]
        seconds = time.monotonic() - start
        rate = f"{done / seconds:.3g} {unit}/s" if seconds > 1 else ""
        self._bars.update(bar, completed=done, total=total, rate=rate, facts=facts)

    def news(self, task: str, text: str) -> None:
        self._console.print(Text(f"{task:>10} │ {text}"))

    def ended(self, task: str, succeeded: bool, seconds: float) -> None:
        self._clear()
        self._console.print(
            Text(f"{'✓' if succeeded else '✗'} {task} ({duration(seconds)})", "green" if succeeded else "red")
        )

    def close(self) -> None:
        self._bars.stop()

    def _clear(self) -> None:
        for bar, _ in self._open.values():
            self._bars.remove_task(bar)
        self._open.clear()


def view_for(console: Console) -> View:
    """Bars on a terminal, lines elsewhere."""
    return TerminalView(console) if console.is_terminal else PlainView(console)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
