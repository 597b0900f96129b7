"""The load under which a server is measured."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class Load:
    """What is asked, and how fast. Prompts are random tokens, and answers go on to their length whatever they say."""

    rate: float = setting(
        0.0,
        unit="requests/s",
        minimum=0,
        help="requests come so often, at random moments (Poisson), whatever the server does",
    )
    at_once: int = setting(0, minimum=0, help="so many requests are under way at all times")
    requests: int = setting(100, minimum=1, help="how many are counted; for p99 to mean something, some hundreds")
    prompt_tokens: int = setting(128, unit="tokens", minimum=1, help="the length of each prompt")
    answer_tokens: int = setting(64, unit="tokens", minimum=2, help="the length of each answer")
    warm_up: int = setting(2, minimum=0, help="requests of that size to each model that come first and are not counted")
    seed: int = setting(
        0, minimum=0, help="of prompts and moments; one that a server has seen is answered from its prefix cache"
    )


def refuse_unstated(load: Load) -> None:
    """Raises SettingsError unless the load is stated in exactly one of the two ways."""
    if (load.rate > 0) == (load.at_once > 0):
        raise SettingsError(
            "The load is not stated.",
            seen=f"rate {load.rate:g}, at_once {load.at_once}",
            expected="one of the two above 0",
            remedy="give --rate (requests a second, as users come) or --at-once (so many all the time, for throughput)",
        )


def told(load: Load) -> str:
    """The load in a line."""
    how = f"{load.rate:g} requests/s" if load.rate else f"{load.at_once} at once"
    return f"{load.requests} requests, {how}, {load.prompt_tokens} + {load.answer_tokens} tokens"
