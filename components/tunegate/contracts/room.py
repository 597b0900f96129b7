"""The error of a device that holds no more, whichever library met it. Standard library only."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from tunegate.contracts.errors import RunError, TunegateError

#: Errors of a device that holds no more: none left, none left of a quota, a file beyond the allowed size.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: How a library in Rust, as safetensors is one, writes the system's error into its text: it has no ``errno``.
_IN_TEXT = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+),")


def why_no_room(error: BaseException) -> str:
    """The system's words where ``error`` says that a device holds no more; empty where it says something else.

    Args:
        error: what a writer raised. An error of ours has said what it has to say.
    """
    if isinstance(error, OSError):
        number = error.errno
    elif isinstance(error, Exception) and not isinstance(error, TunegateError):
        found = _IN_TEXT.search(str(error))
        number = int(found[1] or found[2]) if found else None
    else:
        number = None
    return os.strerror(number) if number in _NO_ROOM else ""


def no_room(output: Path, why: str) -> RunError:
    """The error for ``output``, whose device holds no more.

    Args:
        output: what could not be written; the unfinished one is removed by then, or will be.
        why: see :func:`why_no_room`.
    """
    free = shutil.disk_usage(output.parent).free
    return RunError(
        f"There is no room for {output}.",
        seen=f"{why}; {free / 1e9:.2f} GB are free without what is unfinished of it",
        expected="room for the whole artifact",
        remedy=f"make room below {output.parent}, or choose another output, and run the same command again",
    )
