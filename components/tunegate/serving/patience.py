"""A server that is busy is asked again, later each time, until patience ends."""

from __future__ import annotations

import http
import itertools
import random
import time
import urllib.error
from collections.abc import Callable, Iterator

#: Answers that ask for patience.
BUSY = (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE)
_LONGEST_PAUSE_SECONDS = 30.0


def patiently(ask: Callable[[], bytes], *, seconds: float) -> bytes:
    """What ``ask`` returns, when it is asked again for as long as the server says that it is busy.

    Args:
        ask: one request.
        seconds: how long it is asked again; a pause that would end later is not begun.

    Raises:
        urllib.error.HTTPError: the last refusal.
    """
    ends = time.monotonic() + seconds
    for pause in _pauses():
        try:
            return ask()
        except urllib.error.HTTPError as error:
            wait = max(pause, _retry_after(error))
            if error.code not in BUSY or time.monotonic() + wait > ends:
                raise
            error.close()
        time.sleep(wait)
    raise AssertionError("the pauses never end")


def _pauses() -> Iterator[float]:
    """Twice as long each time, and never quite the same: those who were sent away together do not return together."""
    for doublings in itertools.count():
        yield min(0.5 * 2.0**doublings, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)


def _retry_after(error: urllib.error.HTTPError) -> float:
    """The seconds for which the server asks; 0 where it says nothing, or a date."""
    said = error.headers.get("Retry-After", "") if error.headers else ""
    return float(said) if said.isdecimal() else 0.0
