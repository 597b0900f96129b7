"""Every error tunegate raises on purpose, as one tree.

::

    TunegateError                 exit code
    ├── InputError                2   what was given cannot be used; nothing was written
    │   ├── SettingsError             a setting: unknown key, wrong type, out of range
    │   ├── LintError                 settings that are valid and still sure to fail
    │   ├── DataError                 rows of a data set
    │   ├── ModelError                a model folder or its tokenizer
    │   ├── AdapterError              an adapter that does not fit its base, or changes nothing
    │   ├── ArtifactError             an artifact folder that does not verify
    │   ├── OutputExistsError         the output is there already, made from something else
    │   └── PolicyError               a gate policy that cannot be judged
    ├── RunError                  1   the work itself failed; running again may help
    │   ├── ConflictError             somebody else moved the object in between
    │   └── Interrupted           75  asked to stop; the same command goes on where it was
    └── GateRefused               3   the gate said no: FAIL or INCONCLUSIVE
        └── ApprovalRefused           a person said no, nobody answered in time, or an approval does not count
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

#: How many offending items an error spells out before it counts the rest.
ITEMS_SHOWN = 8

#: What stands before the one line by which an error crosses a process boundary.
ERROR_LINE = "tunegate-error: "

P = ParamSpec("P")
R = TypeVar("R")


class TunegateError(Exception):
    """An error that says what failed, what was seen, what was expected and what to do.

    Args:
        failed: one sentence naming what could not be done.
        seen: what was found.
        expected: what would have been right.
        remedy: what to do about it.
        items: the offending rows, files, keys; the first few are shown.
    """

    exit_code = 1

    #: How many further items there are that ``items`` does not hold: an error read back from a line has only the first.
    more = 0

    def __init__(self, failed: str, *, seen: str, expected: str, remedy: str, items: Sequence[str] = ()) -> None:
        self.failed, self.seen, self.expected, self.remedy = failed, seen, expected, remedy
        self.items = tuple(items)
        super().__init__(failed)

    def __str__(self) -> str:
        lines = [self.failed, f"  seen:     {self.seen}", f"  expected: {self.expected}"]
        lines += [f"    - {item}" for item in self.items[:ITEMS_SHOWN]]
        if self.items_not_shown:
            lines.append(f"    - … and {self.items_not_shown} more")
        return "\n".join([*lines, f"  to do:    {self.remedy}"])

    @property
    def items_not_shown(self) -> int:
        """How many offending items the text only counts."""
        return max(len(self.items) - ITEMS_SHOWN, 0) + self.more

    def __reduce__(self) -> tuple[Callable[[str], TunegateError], tuple[str], dict[str, Any]]:
        """Pickles the error whole: an exception is otherwise made again from its one positional argument."""
        made_again = functools.partial(type(self), seen=self.seen, expected=self.expected, remedy=self.remedy)
        return made_again, (self.failed,), {"items": self.items, "more": self.more}


class InputError(TunegateError):
    """What was given cannot be used. Raised before anything expensive starts."""

    exit_code = 2


class SettingsError(InputError):
    """A setting has an unknown key, a wrong type or a value out of its range."""


class LintError(InputError):
    """Settings that are each valid, and together sure to waste the run."""


class DataError(InputError):
    """A data set, or rows of it, cannot be used."""


class ModelError(InputError):
    """A model folder or its tokenizer cannot be used."""


class AdapterError(InputError):
    """An adapter does not fit the base it should be merged into."""


class ArtifactError(InputError):
    """An artifact folder is incomplete, or is not what its manifest says."""


class OutputExistsError(InputError):
    """The output exists and was made from other inputs or settings."""


class PolicyError(InputError):
    """A gate policy is malformed."""


class RunError(TunegateError):
    """The work failed though its inputs were right."""


class ConflictError(RunError):
    """A compare-and-swap lost: the object changed since it was read."""


class Interrupted(RunError):
    """The run was asked to stop, and did at a place from which it can go on: try again (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class GateRefused(TunegateError):
    """The gate's verdict is FAIL or INCONCLUSIVE."""

    exit_code = 3


class ApprovalRefused(GateRefused):
    """An approval was denied, came too late, came from the wrong person, or is of something that changed since."""


def _tree(cls: type[TunegateError]) -> dict[str, type[TunegateError]]:
    found = {cls.__name__: cls}
    for child in cls.__subclasses__():
        found |= _tree(child)
    return found


def error_line(error: TunegateError) -> str:
    """The error as one line that :func:`error_from_line` reads back in another process.

    It carries the items that the error's text shows and counts the rest: a log may cut a line of a million rows.
    """
    fields = {name: getattr(error, name) for name in ("failed", "seen", "expected", "remedy")}
    fields["items"] = error.items[:ITEMS_SHOWN]
    if error.items_not_shown:
        fields["more"] = error.items_not_shown
    return ERROR_LINE + json.dumps({"type": type(error).__name__, **fields})


def error_from_line(line: str) -> TunegateError:
    """The error written by :func:`error_line`: its text is the same, its items are those that the text shows."""
    document = json.loads(line[line.index(ERROR_LINE) + len(ERROR_LINE) :])
    cls = _tree(TunegateError)[document.pop("type")]
    more = document.pop("more", 0)
    error = cls(document.pop("failed"), **document)
    error.more = more
    return error


def reports_errors(launch: Callable[P, R]) -> Callable[P, R]:
    """Makes a component's launcher end with the error's own exit code, after writing it as one line.

    A KFP component is a process: its exit code and its output are all that a runner sees of an error.
    """

    @functools.wraps(launch)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return launch(*args, **kwargs)
        except TunegateError as error:
            print(error, file=sys.stderr)
            print(error_line(error), file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error

    return wrapped
