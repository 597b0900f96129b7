"""What a lint rule is: what it is given, what it says, and where it stands in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunegate.contracts.vllm import THIS_MACHINE
from tunegate.preflight.model_shape import ModelShape, model_shape
from tunegate.preflight.serving_targets import Target, find_target

Sections = Mapping[str, Mapping[str, Any]]
Severity = Literal["error", "warning"]
Need = Literal["base_config", "rows", "serving_target"]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: the rule's id.
        severity: ``error`` stops the run, ``warning`` is shown.
        seen: what was set.
        remedy: what to do.
        reference: where the rule comes from.
    """

    rule: str
    severity: Severity
    seen: str
    remedy: str
    reference: str


@dataclass(frozen=True)
class Sample:
    """The data set, as far as a lint looks into it.

    Attributes:
        rows: how many rows there are to train, validate and evaluate on: one for each answer.
        completions: the answers of some of them, or the texts.
    """

    rows: int
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """What a rule may look at.

    Attributes:
        sections: step → its settings, with defaults filled in.
        base_config: the base's ``config.json``, where it is at hand.
        rows: the data set, likewise.
        absent: why something is not at hand.
        own_tasks: name of a user's own task → what it measures of a row; ``evaluate.tasks`` holds these names.
    """

    sections: Sections
    base_config: Mapping[str, Any] | None = None
    rows: Sample | None = None
    absent: Mapping[Need, str] = field(default_factory=dict)
    own_tasks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, step: str) -> Mapping[str, Any]:
        """A step's settings; empty where the step is not part of the run."""
        return self.sections.get(step, {})

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's ``config.json``, for a rule that needs it."""
        assert self.base_config is not None
        return self.base_config

    @property
    def shape(self) -> ModelShape:
        """The base's widths, for a rule that needs its config.

        Raises:
            ModelError: for an architecture whose shapes are not known.
        """
        return model_shape(self.config)

    @property
    def serving_target(self) -> Target | None:
        """Where the model will be served; None where that is not known."""
        name = self.of("quantize").get("serving_target", THIS_MACHINE)
        return None if name == THIS_MACHINE else find_target(name)

    @property
    def target(self) -> Target:
        """Where the model will be served, for a rule that needs it."""
        assert self.serving_target is not None
        return self.serving_target

    @property
    def sample(self) -> Sample:
        """The data set, for a rule that needs it."""
        assert self.rows is not None
        return self.rows


@dataclass(frozen=True)
class Remark:
    """What a rule's function says; the table adds id and reference to make it a :class:`Finding`."""

    severity: Severity
    seen: str
    remedy: str


def always(sections: Sections) -> bool:
    """For a rule that every run can break."""
    return True


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        id: what a person refers to it by.
        about: what it finds, in half a sentence.
        find: looks and says.
        reference: where the rule comes from: a paper, a public issue, a step's README.
        needs: what must be at hand; without it the rule is named as not checked.
        applies: whether the settings are such that the rule means anything.
    """

    id: str
    about: str
    find: Callable[[Context], Iterator[Remark]]
    reference: str
    needs: tuple[Need, ...] = ()
    applies: Callable[[Sections], bool] = always
