"""Nothing that is sent holds the value of a secret: a last look at all of it, before it leaves this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunegate.contracts.errors import InputError

#: Variables that hold secrets of the libraries, whatever a cluster file names.
_ALWAYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

#: Shorter values are words that stand in documents anyway.
_SHORTEST = 8


def refuse_secrets(sent: Mapping[str, Any], variables: Iterable[str], environment: Mapping[str, str]) -> None:
    """Refuses what the value of a secret variable of this machine stands in.

    Args:
        sent: what each is called → a text, or plain data, of which names and values are looked at as they are meant: a
            document writes quotes, backslashes and other letters in its own way.
        variables: names of variables that hold secrets.
        environment: their values here.

    Raises:
        InputError: naming place and variable, and never the value.
    """
    secret = {name: environment.get(name, "") for name in sorted({*variables, *_ALWAYS} - {""})}
    found = [
        f"{what}: the value of {name}"
        for what, given in sent.items()
        for name, value in secret.items()
        if len(value) >= _SHORTEST and any(written in text for text in _texts(given) for written in _written(value))
    ]
    if found:
        raise InputError(
            "The value of a secret would stand where everybody who sees the run reads it.",
            seen=f"{len(found)} place(s)",
            expected="secrets by reference: name the variable, and give it to the pods by a Kubernetes Secret",
            remedy="take the value out of the recipe or cluster file, and use `secrets` of the cluster file",
            items=found,
        )


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, Mapping):
        for name, value in given.items():
            yield from _texts(name)
            yield from _texts(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _texts(value)
    elif given is not None:
        yield str(given)


def _written(value: str) -> set[str]:
    """A value as it is, and as JSON inside a text has it."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
