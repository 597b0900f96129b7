"""Blocks computed in several threads and handed on in their order: the result does not depend on how many there are."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: More threads than this only wait for the one that hashes and writes.
_MOST_WORKERS = 8


def worker_count() -> int:
    """Threads that compute: one for each processor that this process may use."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def in_order(jobs: Iterable[Callable[[], T]], *, workers: int) -> Iterator[T]:
    """Runs jobs in threads and yields what they return, in the order of the jobs.

    Args:
        jobs: taken one by one; two for each thread are under way, so memory is bounded by so many results.
        workers: how many threads.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tunegate") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Within it, torch computes each operation in the thread that asks: our threads already take every processor."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
