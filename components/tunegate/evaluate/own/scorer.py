"""A scorer in Python: a function of an installed distribution, never of a path.

It is code that runs here, so it is known by distribution, version and the digest of its file, as is every result of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError, SettingsError
from tunegate.contracts.files import sha256_file


@dataclass(frozen=True)
class Scorer:
    """A function that scores an answer.

    Attributes:
        name: ``package.module:function``.
        distribution: what installed it, as ``name==version``.
        sha256: of the module's file.
        function: called with the row and the answer; returns a number.
    """

    name: str
    distribution: str
    sha256: str
    function: Callable[[Mapping[str, Any], str], Any]

    def score(self, row: Mapping[str, Any], answer: str, *, row_id: str, score_range: tuple[float, ...]) -> float:
        """The score of one answer.

        Raises:
            RunError: when the scorer fails, or returns something else than a number in its range: that is no score.
        """
        try:
            score = self.function(row, answer)
        except Exception as error:
            raise self._failed(row_id, f"{type(error).__name__}: {error}", score_range) from error
        number = float(score) if isinstance(score, bool | int | float) else math.nan
        if not score_range[0] <= number <= score_range[1]:
            raise self._failed(row_id, f"returned {score!r}", score_range)
        return number

    def _failed(self, row_id: str, seen: str, score_range: tuple[float, ...]) -> RunError:
        return RunError(
            f"The scorer {self.name} gives no score.",
            seen=f"row {row_id}: {seen}",
            expected=f"a number from {score_range[0]:g} to {score_range[1]:g}, as score_range says",
            remedy=f"correct the scorer in {self.distribution}",
        )


def load_scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        SettingsError: when no installed distribution holds it: a file that only lies in the working folder is another
            one on another machine.
    """
    module_name, _, function_name = name.partition(":")
    top = module_name.partition(".")[0]
    owners = metadata.packages_distributions().get(top, [])
    if not owners:
        raise _unusable(name, f"no installed distribution has a package {top!r}")
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise _unusable(name, f"{type(error).__name__}: {error}") from error
    if spec is None or not spec.origin:
        raise _unusable(name, f"no module {module_name!r}")
    path = Path(spec.origin)
    distribution = next((d for d in map(metadata.distribution, owners) if _holds(d, path)), None)
    if distribution is None:
        raise _unusable(name, f"{path} is not a file that {' or '.join(owners)} installed")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise _unusable(name, f"{module_name} has no function {function_name!r}")
    known_as = f"{distribution.metadata['Name']}=={distribution.version}"
    return Scorer(name, known_as, sha256_file(path), function)


def _holds(distribution: metadata.Distribution, path: Path) -> bool:
    files = distribution.files or ()
    return any(Path(str(distribution.locate_file(file))).resolve() == path.resolve() for file in files)


def _unusable(name: str, seen: str) -> SettingsError:
    return SettingsError(
        f"The scorer {name!r} cannot be used.",
        seen=seen,
        expected="package.module:function of a distribution that is installed here (not in editable mode)",
        remedy="install it beside tunegate, and in the image that evaluates; a file beside the task is not run",
    )
