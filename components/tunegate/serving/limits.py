"""How closely what serves must answer as what was evaluated: the limits, before a promotion and at each deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.settings import parse_settings, setting


@dataclass(frozen=True)
class AnswerLimits:
    """How far answers and their log-probabilities may be from the evaluated model's."""

    min_agreement: float = setting(
        1.0, help="share of rows that are answered the same, up to a tie within rounding", minimum=0, maximum=1
    )
    max_mean_logprob_difference: float | None = setting(
        None, help="mean difference of the log-probabilities", unit="nats a token", exclusive_minimum=0
    )
    max_logprob_difference: float | None = setting(
        None, help="difference of the token that differs most", unit="nats", exclusive_minimum=0
    )
    max_times_noise: float | None = setting(
        3.0,
        help="mean difference of the log-probabilities, as a multiple of what rounding alone makes; engines that "
        "compute rightly were measured at 1.1 to 1.8",
        exclusive_minimum=0,
    )


@dataclass(frozen=True)
class Figures:
    """What was found of answers; None for what could not be measured.

    Attributes:
        agreement: share of rows that are answered the same, up to a tie.
        mean_difference: of the log-probabilities, in nats.
        max_difference: of the token that differs most, in nats.
        mean_noise: mean difference that rounding alone makes, in nats.
    """

    agreement: float | None
    mean_difference: float | None
    max_difference: float | None
    mean_noise: float | None

    @property
    def times_noise(self) -> float | None:
        """The mean difference as a multiple of what rounding alone makes."""
        return self.mean_difference / self.mean_noise if self.mean_difference is not None and self.mean_noise else None


@dataclass(frozen=True)
class Held:
    """A limit, held against what was found.

    Attributes:
        name: of the limit, in words.
        limit: its number.
        value: what was found; None where it could not be measured.
        holds: whether the limit is kept; never by what could not be measured.
    """

    name: str
    limit: float
    value: float | None
    holds: bool

    @property
    def told(self) -> str:
        """What was found, in words."""
        return f"no {self.name.partition(' ')[2]} was found" if self.value is None else f"{self.value:.4g}"


def held(limits: AnswerLimits, found: Figures) -> tuple[Held, ...]:
    """Holds what was found against every limit that is set."""
    checks = (
        at_least("min agreement", limits.min_agreement, found.agreement),
        at_most("max mean logprob difference", limits.max_mean_logprob_difference, found.mean_difference),
        at_most("max logprob difference", limits.max_logprob_difference, found.max_difference),
        at_most("max times noise", limits.max_times_noise, found.times_noise),
    )
    return tuple(check for check in checks if check is not None)


def at_least(name: str, limit: float | None, value: float | None) -> Held | None:
    """A lower limit; None where it is not set."""
    return None if limit is None else Held(name, limit, value, value is not None and value >= limit)


def at_most(name: str, limit: float | None, value: float | None) -> Held | None:
    """An upper limit; None where it is not set."""
    return None if limit is None else Held(name, limit, value, value is not None and value <= limit)


def limits_of_policy(path: Path) -> AnswerLimits:
    """The limits that a version was judged by; the defaults where its policy says nothing of serving.

    Args:
        path: ``policy.json``, as the gate writes it with every default, in a version at ``verdict/policy.json``.

    Raises:
        ArtifactError: when it cannot be read, or states no such limits.
    """
    try:
        section: Mapping[str, Any] = read_json_object(path)["serving"] or {}
        own = {name: value for name, value in section.items() if name in _names()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a policy.",
            seen=f"{type(error).__name__}: {error}",
            expected="the policy.json that the gate wrote beside its verdict",
            remedy="give the folder of a version that was promoted",
        ) from error
    return parse_settings(AnswerLimits, own, where=f"{path}: serving")


def _names() -> set[str]:
    return {field.name for field in dataclasses.fields(AnswerLimits)}
