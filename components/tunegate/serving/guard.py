"""Keeps one process from outliving the one that wanted it. Run as a file by its path: standard library only.

``guard.py PARENT_ID GRACE_SECONDS COMMAND…`` starts the command in a process group of its own, prints the group's id,
and waits. The group ends, all of it, when the command ends, when the guard gets SIGTERM, or when the parent is gone by
whatever death: SIGTERM first, SIGKILL after the grace. The guard then exits as the command did.

A signal tied to the parent's death (PR_SET_PDEATHSIG) would not do: it goes off when the parent's *thread* ends, and
reaches the command alone, not the workers it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_POLL_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Guards a command; see the module. Returns its exit code, 128 and the signal's number where one ended it."""
    parent, grace_seconds, *command = arguments
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is the parent's to answer
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, process_group=0)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone already
        print(process.pid, flush=True)
    while process.poll() is None and not asked and os.getppid() == int(parent):
        time.sleep(_POLL_SECONDS)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(float(grace_seconds))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
