"""A request to stop a local run goes to the step that runs, which ends where it can be continued."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psutil

from tunegate_pipelines.follow import RunStopped


class Stop:
    """Whether the run was asked to stop. Processes that were there before it began are none of its steps."""

    requested = False

    def __init__(self) -> None:
        self._others = set(_descendants())

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:  # a person who asks twice will not wait
            raise KeyboardInterrupt
        self.requested = True
        children = [child for child in _descendants() if child not in self._others]
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        if not children:  # between two steps
            raise RunStopped


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)  # type: ignore[no-any-return,unused-ignore]


@contextlib.contextmanager
def stop_passed_on() -> Iterator[Stop]:
    """While it is entered, SIGTERM and SIGINT end the running step, and this process tells what it said."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
        yield stop
        return
    before = {number: signal.signal(number, stop._ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
