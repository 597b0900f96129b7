"""What a supervisor serves: what differs between the version of an alias and a fleet, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunegate.serving.engine import Engine
from tunegate.serving.process import Server


@dataclass(frozen=True)
class Wanted:
    """What should be served.

    Attributes:
        target: names all that is served: a version's digest, or a fleet's.
        decision: tells one decision for it from another; what is refused is tried again when there is a new one.
    """

    target: str
    decision: str


@dataclass(frozen=True)
class Prepared:
    """A target, ready to be started.

    Attributes:
        engine: what is started; every byte that it loads was verified.
        check: asks the started server before it gets any request, and raises GateRefused when it may not have one.
        names: what clients call a model → what the server calls it, where the address translates.
    """

    engine: Engine
    check: Callable[[Server], None]
    names: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where a supervisor learns what to serve."""

    @property
    def title(self) -> str:
        """What it is called in messages: an alias, or a fleet file."""

    def told(self) -> Mapping[str, Any]:
        """What the state says of it."""

    def wanted(self) -> Wanted | None:
        """What should be served now; None: whatever serves.

        Raises:
            TunegateError, OSError: when that cannot be known at the moment, which stops nothing that serves.
        """

    def prepare(self, target: str, cancelled: threading.Event) -> Prepared:
        """Brings what a target needs to this machine, and verifies it. Called in a thread.

        Args:
            target: what :meth:`wanted` named.
            cancelled: set when the target is no longer wanted; what takes long ends then with Interrupted.

        Raises:
            InputError, GateRefused: when it may not be served.
            RunError, OSError: when that did not work this time.
        """

    def keep(self, target: str) -> None:
        """Removes what is kept of others than ``target``, which now serves, beyond what the settings allow."""
