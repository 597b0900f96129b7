"""Silence: the libraries' progress bars and chatter are replaced by our own plain lines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Disables every tqdm bar, and everything below an error in the named loggers, while it lasts."""
    from tqdm import std  # type: ignore[import-untyped]

    draw = std.tqdm.__init__
    levels = {name: logging.getLogger(name).level for name in loggers}

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        draw(self, *args, **{**kwargs, "disable": True})

    std.tqdm.__init__ = silent
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        std.tqdm.__init__ = draw
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
