"""The same work for many objects in a few threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: How many objects are worked on at once. Hashing and waiting for a server leave Python's lock: threads are enough,
#: and a process that holds torch is not forked.
WORKERS = 8

T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results in order; the first failure is raised when nothing is running any more."""
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        return list(pool.map(work, items))
