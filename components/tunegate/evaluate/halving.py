"""Half as many rows at once when memory runs out. What was answered before is kept: nothing is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from tunegate.contracts.errors import RunError
from tunegate.contracts.progress import say
from tunegate.models.memory import out_of_memory

STEP = "evaluate"

R = TypeVar("R")


class Answers:
    """Takes the answers that the harness reports while it works on a batch; in place of its own cache's hook."""

    def __init__(self, key: Callable[[Any], Hashable]) -> None:
        self.found: dict[Hashable, Any] = {}
        self._key = key

    def add_partial(self, attribute: str, request: Iterable[Any], answer: Any) -> None:
        """Called by the harness for each row that is answered."""
        self.found[self._key(request)] = answer


def asked_in_smaller_batches(
    ask: Callable[[Sequence[R]], list[Any]],
    requests: Sequence[R],
    *,
    key: Callable[[R], Hashable],
    answers: Answers,
    halve: Callable[[], tuple[int, int] | None],
) -> list[Any]:
    """The answers to all requests, in their order.

    Args:
        ask: answers requests in batches of the size that ``halve`` changes, and reports to ``answers`` as it goes.
        requests: what is asked.
        key: what ``answers`` knows a request by.
        answers: what was reported so far.
        halve: halves the batch and returns its size before and after; None when it was a single row.

    Raises:
        RunError: when a single row does not fit.
    """
    given: dict[Hashable, Any] = {}
    left = list(requests)
    while True:
        try:
            for request, answer in zip(left, ask(left), strict=True):
                given[key(request)] = answer
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            sizes = halve()
            if sizes is None:
                raise RunError(
                    "The evaluation runs out of memory.",
                    seen="a single row does not fit beside the model",
                    expected="room for one row",
                    remedy="lower evaluate.max_new_tokens, or evaluate on a device with more memory",
                ) from error
        else:
            return [given[key(request)] for request in requests]
        # Outside of the except block: the exception holds the frames, and with them the tensors.
        _clear()
        given |= answers.found
        left = [request for request in left if key(request) not in given]
        say(STEP, f"memory ran out with {sizes[0]} rows at once: going on with {sizes[1]}, {len(left)} rows are left")
        if not left:
            return [given[key(request)] for request in requests]


def _clear() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
