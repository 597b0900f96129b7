"""A YAML file that a person wrote, as an object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunegate.contracts.errors import SettingsError


class Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as YAML 1.2 says and as everyone writes it."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml_object(path: Path, *, what: str) -> dict[str, Any]:
    """The mapping that a file holds; an empty file holds an empty one.

    Args:
        path: the file.
        what: what it is called in an error.

    Raises:
        SettingsError: when it cannot be read, is no YAML, or holds no mapping.
    """
    found = parse_yaml(read_text(path, what=what), where=str(path))
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise SettingsError(
            f"{path} is no {what}.",
            seen=type(found).__name__,
            expected="names with their values",
            remedy="write 'name: value' lines",
        )
    return dict(found)


def read_text(path: Path, *, what: str) -> str:
    """A text file.

    Raises:
        SettingsError: when it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The {what} {path} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="a YAML file",
            remedy="check the path",
        ) from error


def parse_yaml(text: str, *, where: str) -> Any:
    """What a YAML text holds.

    Raises:
        SettingsError: when it is none.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{where} is no valid YAML.",
            seen=" ".join(str(error).split()),
            expected="a YAML document",
            remedy="check indentation, quotes and colons at the place named",
        ) from error
