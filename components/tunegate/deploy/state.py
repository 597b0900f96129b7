"""What a supervisor says of itself, and the lock by which there is one for each folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ConflictError, InputError

STATE_NAME = "state.json"
SCHEMA_VERSION = 1

_LOCK = "lock"

#: How long a supervisor waits for the lock: somebody may just be looking whether it is held.
_LOOK_SECONDS = 2.0


def read_state(folder: Path) -> dict[str, Any]:
    """What a supervisor says of itself, with whether it runs.

    Raises:
        InputError: when none ever worked in ``folder``.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        raise InputError(
            f"Nothing was ever served from {folder}.",
            seen=f"no {STATE_NAME}",
            expected="the folder that `tunegate deploy` was given",
            remedy="start `tunegate deploy`, or name its --folder",
        )
    state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    with (folder / _LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
            state["running"] = False
        except BlockingIOError:
            state["running"] = True
    return state


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock.

    Raises:
        ConflictError: when another supervisor has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + _LOOK_SECONDS
    with (folder / _LOCK).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < ends:
                    time.sleep(0.05)
                    continue
                raise ConflictError(
                    f"Another supervisor works in {folder}.",
                    seen="a lock that is held",
                    expected="one supervisor for each folder",
                    remedy="stop the other one, or give another --folder",
                ) from error
        yield
