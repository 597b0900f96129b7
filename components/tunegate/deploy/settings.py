"""How an alias is served on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class LocalSettings:
    """The stable address, and when one server takes another's place."""

    host: str = setting("127.0.0.1", help="where the stable address listens")
    port: int = setting(8000, help="where it listens; 0: one that is free", minimum=0, maximum=65535)
    check: str = setting(
        "probes",
        choices=("probes", "none"),
        help="what a new server must answer before it gets a request: what the evaluated model answered, or nothing",
    )
    poll_seconds: float = setting(2.0, unit="seconds", help="how often the alias is read", exclusive_minimum=0)
    ready_seconds: float = setting(900.0, unit="seconds", help="how long a server may load", exclusive_minimum=0)
    drain_seconds: float = setting(
        600.0, unit="seconds", help="how long the requests of a server that was replaced may take to end", minimum=0
    )
    kept_versions: int = setting(
        2, help="how many versions' files are kept, what is served included; the rest is fetched again", minimum=1
    )
    python: str = setting("", help="the Python that holds vLLM; empty: TUNEGATE_SERVE_PYTHON, else .venvs/serve")
