"""Asking a server several things at once: it computes them together, and a row costs a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tunegate.contracts.progress import Progress

Q = TypeVar("Q")
R = TypeVar("R")


def asked_together(
    questions: Sequence[Q], ask: Callable[[Q], R], *, at_once: int, progress: Progress | None = None
) -> list[R]:
    """The answers in the order of the questions; the first failure ends all.

    Args:
        questions: what is asked.
        ask: asks one.
        at_once: how many are under way at the same time.
        progress: counts the answers.
    """
    pool = ThreadPoolExecutor(at_once)
    try:
        found = []
        for answer in pool.map(ask, questions):
            found.append(answer)
            if progress is not None:
                progress.advance()
        return found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
