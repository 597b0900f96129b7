"""What a canary shows while it has a share of the traffic: failures and times, beside what serves, and of users."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tunegate.contracts.errors import InputError, RunError
from tunegate.deploy.kserve.servers import Counted, counted
from tunegate.deploy.settings import ClusterSettings
from tunegate.serving.client import Client
from tunegate.serving.probes import Probes

#: The percentile of times that is held against the limits.
_PERCENTILE = 0.95

#: What is asked where no probes are compared: a token, and how many more.
_ANY_PROMPT, _ANY_TOKENS = (0,), 8


@dataclass(frozen=True)
class Figures:
    """What was seen of one share of the traffic.

    Attributes:
        weight: the share, in percent.
        asked, failed: requests of ours to the canary.
        user_requests, user_failures: what its servers counted meanwhile, ours among them.
        seconds: 95th percentile of our requests' times; None when none was answered.
        serving_seconds: the same of what serves; None where that was not asked or did not answer.
    """

    weight: int
    asked: int
    failed: int
    user_requests: int
    user_failures: int
    seconds: float | None
    serving_seconds: float | None

    def error_rate(self, least: int) -> float:
        """Share that failed, of our requests or of those that the servers counted: the larger one.

        Args:
            least: of so many it is a share even where fewer were asked: one failure of one says little.
        """
        rates = [(self.failed, self.asked), (self.user_failures, self.user_requests)]
        return max(bad / max(all_, least) for bad, all_ in rates)


@dataclass
class Watch:
    """The requests of one share of the traffic.

    Args:
        weight: the share, in percent.
        model: the canary's digest.
        alias: the name that is asked, as users do: each answer must say the digest.
        probes: what is asked; None: one token.
        seconds: how long an answer may take.
    """

    weight: int
    model: str
    alias: str
    probes: Probes | None
    seconds: float
    _ours: list[float] = field(default_factory=list)
    _theirs: list[float] = field(default_factory=list)
    _asked: int = 0
    _failed: int = 0
    _first: dict[str, Counted] = field(default_factory=dict)
    _grown: Counted = field(default_factory=Counted)
    _prompts: Iterator[tuple[Sequence[int], int]] | None = None

    def ask(self, canary: str, serving: str, serving_model: str) -> None:
        """Asks a server of the canary and one of what serves the same; which comes first alternates.

        Args:
            canary, serving: their addresses; ``serving`` empty: none answers.
            serving_model: the digest of what serves.
        """
        prompt, tokens = self._next_prompt()
        pairs = [(canary, self.model, self._ours), (serving, serving_model, self._theirs)]
        for url, model, times in pairs if self._asked % 2 else reversed(pairs):
            taken = self._taken(url, model, prompt, tokens) if url else None
            if taken is not None:
                times.append(taken)
            elif times is self._ours:
                self._failed += 1
        self._asked += 1

    def count(self, urls: Sequence[str]) -> None:
        """Reads what the canary's servers have counted; a server that does not say counts as before."""
        for url in urls:
            try:
                now = counted(url, seconds=self.seconds)
            except (RunError, InputError):
                continue
            before = self._first.get(url, now)
            if now.answered < before.answered:  # it has started anew, and counts from nothing
                before = Counted()
            grown = Counted(now.answered - before.answered, now.failed - before.failed)
            self._grown = Counted(self._grown.answered + grown.answered, self._grown.failed + grown.failed)
            self._first[url] = now

    @property
    def asked(self) -> int:
        """How many requests were asked of the canary."""
        return self._asked

    @property
    def figures(self) -> Figures:
        """What was seen so far."""
        return Figures(
            weight=self.weight,
            asked=self._asked,
            failed=self._failed,
            user_requests=round(self._grown.answered),
            user_failures=round(self._grown.failed),
            seconds=percentile(self._ours),
            serving_seconds=percentile(self._theirs),
        )

    def _next_prompt(self) -> tuple[Sequence[int], int]:
        if self._prompts is None:
            rows = [(row.prompt_ids, row.max_tokens) for row in self.probes.rows] if self.probes else []
            self._prompts = itertools.cycle(rows or [(_ANY_PROMPT, _ANY_TOKENS)])
        return next(self._prompts)

    def _taken(self, url: str, model: str, prompt: Sequence[int], tokens: int) -> float | None:
        """The seconds an answer took; None for none, or for one of another model.

        The same number of tokens from both, or times compare nothing.
        """
        begin = time.monotonic()
        try:
            client = Client(url, timeout_seconds=self.seconds)
            answer = client.complete(prompt, model=self.alias, max_tokens=tokens, ignore_eos=True)
        except (RunError, InputError):
            return None
        return time.monotonic() - begin if answer.model == model else None


def percentile(values: Sequence[float]) -> float | None:
    """The 95th percentile by nearest rank; None of nothing."""
    return sorted(values)[math.ceil(_PERCENTILE * len(values)) - 1] if values else None


def broken_limits(figures: Figures, settings: ClusterSettings) -> list[str]:
    """Each limit that a canary does not keep, in words; empty when it keeps all. Few requests say nothing of times."""
    found = []
    rate = figures.error_rate(settings.min_requests)
    if rate > settings.max_error_rate:
        found.append(
            f"error rate {rate:.2%}, at most {settings.max_error_rate:.2%}: {figures.failed} of "
            f"{figures.asked} requests that were asked, {figures.user_failures} of {figures.user_requests} that its "
            "servers counted"
        )
    limits: Mapping[str, float | None] = {
        "absolute": settings.max_latency_seconds,
        f"{settings.max_latency_ratio:g} times what serves": (
            None if figures.serving_seconds is None else settings.max_latency_ratio * figures.serving_seconds
        ),
    }
    for name, limit in limits.items() if figures.asked >= settings.min_requests else ():
        if limit is not None and figures.seconds is not None and figures.seconds > limit:
            found.append(f"latency: 95 % within {figures.seconds:.3f} s, at most {limit:.3f} s ({name})")
    return found
