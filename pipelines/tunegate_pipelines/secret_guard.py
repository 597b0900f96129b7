"""Nothing that is sent holds the value of a secret: a last look at the very bytes, before they leave this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunegate.contracts.errors import InputError

#: Variables that hold secrets of the libraries, whatever a cluster file names.
_ALWAYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

#: Shorter values are words that stand in documents anyway.
_SHORTEST = 8


def refuse_secrets(texts: Mapping[str, str], variables: Iterable[str], environment: Mapping[str, str]) -> None:
    """Refuses texts in which the value of a secret variable of this machine stands.

    Args:
        texts: what each is called → the text.
        variables: names of variables that hold secrets.
        environment: their values here.

    Raises:
        InputError: naming text and variable, and never the value.
    """
    secret = {name: environment.get(name, "") for name in sorted({*variables, *_ALWAYS} - {""})}
    found = [
        f"{what}: the value of {name}"
        for what, text in texts.items()
        for name, value in secret.items()
        if len(value) >= _SHORTEST and value in text
    ]
    if found:
        raise InputError(
            "A secret would be sent to KFP, where everybody who sees the run reads it.",
            seen=f"{len(found)} place(s)",
            expected="secrets by reference: name the variable, and give it to the pods by a Kubernetes Secret",
            remedy="take the value out of the recipe or cluster file, and use `secrets` of the cluster file",
            items=found,
        )
