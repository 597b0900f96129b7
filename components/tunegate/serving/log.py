"""vLLM's log: the lines that tell why it ended."""

from __future__ import annotations

import re
from pathlib import Path

#: How much of a log's end is looked at.
_TAIL_BYTES = 256 << 10

_SHOWN = 6
_LONGEST = 400

#: ``(EngineCore pid=7) ERROR 11-24 04:15:41 [core.py:1] `` and the like stand before what is said.
_PREFIX = re.compile(r"^(?:\([^)]*pid=\d+\)\s*)?(?:[A-Z]+\s[\d-]+\s[\d:.]+\s\[[^\]]*\]\s?)?")
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*|^\S+: error: .*")

#: What every failed start ends with: it only says that the lines above tell more.
_EMPTY = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|^SystemExit")


def telling_lines(log: Path) -> list[str]:
    """The errors at the end of a log, each once and in order; without any, its last lines."""
    said = [_PREFIX.sub("", line).rstrip() for line in _tail(log)]
    errors = list(dict.fromkeys(line for line in said if _ERROR.match(line) and not _EMPTY.search(line)))
    return [line[:_LONGEST] for line in (errors or [line for line in said if line])[-_SHOWN:]]


def last_line(log: Path) -> str:
    """The last line that says something, empty where there is none."""
    said = (_PREFIX.sub("", line).strip() for line in reversed(_tail(log)))
    return next((line[:_LONGEST] for line in said if line), "")


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _TAIL_BYTES, 0))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
