"""Progress of long work as plain lines: readable in a pod's log, and parsed by the local runner, which draws them."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field

#: What a progress line looks like, for whoever draws it.
PROGRESS_LINE = re.compile(
    r"^\[(?P<task>[\w. -]+)\] (?P<done>\d+)/(?P<total>\d+) (?P<unit>[\w /]+)(?: · (?P<facts>.*))?$"
)

#: What a line of news looks like: ``[task] sentence``.
NEWS_LINE = re.compile(r"^\[(?P<task>[\w. -]+)\] (?P<news>.+)$")


def say(task: str, news: str) -> None:
    """One line that a person following the run should see."""
    print(f"[{task}] {news}", flush=True)


@dataclass
class Progress:
    """Counts work and prints a line at most every ``interval_seconds``, and at the end.

    Args:
        task: the step's name.
        total: how many units there are.
        unit: what is counted, in the plural.
        interval_seconds: the least time between two lines.
    """

    task: str
    total: int
    unit: str
    interval_seconds: float = 2.0
    done: int = 0
    _start: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def advance(self, count: int = 1, **facts: str) -> None:
        """Adds ``count`` units; ``facts`` are shown as given, for example ``loss="1.2"``."""
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self._last < self.interval_seconds:
            return
        self._last = now
        elapsed = now - self._start
        shown = [f"{name} {value}" for name, value in facts.items()]
        if self.done < self.total and elapsed > 0:
            shown.append(f"{_duration(elapsed / self.done * (self.total - self.done))} left")
        elif elapsed > 0:
            shown.append(f"{_duration(elapsed)} in all")
        print(f"[{self.task}] {self.done}/{self.total} {self.unit} · {' · '.join(shown)}", flush=True)
        sys.stdout.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


class ByteProgress:
    """Counts bytes, and shows them as whole megabytes with their rate.

    Args:
        task: the step's name.
        total_bytes: how many there are.
    """

    def __init__(self, task: str, total_bytes: int) -> None:
        self._shown = Progress(task, _megabytes(total_bytes), "MB")
        self._bytes, self._start = 0, time.monotonic()

    def advance(self, count_bytes: int) -> None:
        """Adds ``count_bytes``."""
        self._bytes += count_bytes
        if new := _megabytes(self._bytes) - self._shown.done:
            rate = self._bytes / 1e6 / max(time.monotonic() - self._start, 1e-3)
            self._shown.advance(new, at=f"{rate:.0f} MB/s")


def _megabytes(count_bytes: int) -> int:
    return -(-count_bytes // 10**6)
