"""A process that cannot outlive the one that wanted it: under :mod:`tunegate.serving.guard`, and ended whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunegate.serving import guard

#: What the guard itself needs, to kill and to end, beyond the time it grants.
_KEEPER_SECONDS = 5.0


class Guarded:
    """A command with every process that it starts.

    Args:
        command: what is run.
        environment: all that it sees of an environment.
        log: the file that gets what it says; written anew.
        stop_seconds: how long it may take to end before it is killed.

    Attributes:
        group: the id of its process group; 0 once it has ended.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, stop_seconds: float
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        guarded = [sys.executable, "-I", guard.__file__, str(os.getpid()), str(stop_seconds)]
        with log.open("wb") as file:
            self._keeper = subprocess.Popen(
                [*guarded, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                text=True,
                start_new_session=True,
            )
        self._stop_seconds = stop_seconds
        self.group = 0
        try:
            self.group = int((self._keeper.stdout.readline() if self._keeper.stdout else "") or 0)
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """The exit code once it has ended, None while it runs."""
        code = self._keeper.poll()
        if code is not None:
            self._end_what_is_left()
        return code

    def stop(self) -> None:
        """Ends it and every process it started; returns when none is left. A second time does nothing."""
        try:
            self._keeper.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(self._stop_seconds + _KEEPER_SECONDS)
        finally:
            self._keeper.kill()
            self._keeper.wait()
            self._end_what_is_left()

    def _end_what_is_left(self) -> None:
        """Ends the group of a guard that was killed; one that ended by itself has seen to it. Once: ids are reused."""
        if self.group and self._keeper.returncode < 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
        self.group = 0
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()
