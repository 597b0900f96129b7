"""Addresses of a local run: the demo's names become files, and paths become absolute, for steps run elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tunegate.contracts.errors import InputError
from tunegate.storage.interface import local_root
from tunegate_pipelines.demo.data import write_rows
from tunegate_pipelines.demo.model import write_base_model

#: (run-form parameter, name) → what makes it below the folder it is given. The names mean something in local runs only.
DEMO: Mapping[tuple[str, str], Callable[[Path], Path]] = {
    ("base_model", "demo"): lambda folder: write_base_model(folder / "base_model"),
    ("dataset", "demo"): lambda folder: write_rows(folder / "rows.jsonl"),
    ("dataset", "demo-wrong"): lambda folder: write_rows(folder / "rows.jsonl", wrong=True),
}

#: Places that a run writes to: they need not exist yet.
_WRITTEN = ("registry", "reuse_evaluations", "checkpoint_uri")


def local_addresses(addresses: Mapping[str, str], inputs: Path) -> dict[str, str]:
    """Addresses as a step on this machine can use them.

    Args:
        addresses: run-form parameter → what was written in the form.
        inputs: where the demo's model and rows are put.
    """
    made: dict[str, str] = {}
    for name, address in addresses.items():
        path = Path(address).expanduser()
        if make := DEMO.get((name, address)):
            made[name] = str(make(inputs))
        elif "://" not in address and (name in _WRITTEN or path.exists()):
            made[name] = str(path.resolve())
        else:
            made[name] = address
    return made


@contextlib.contextmanager
def registry_made(address: str) -> Iterator[None]:
    """The registry's folder, made where it is missing: promote itself makes none, for in a pod it would be lost.

    Bad input leaves nothing behind: what was made here is removed again when it is empty.

    Raises:
        InputError: when it cannot be made.
    """
    if "://" in address and not address.startswith("file://"):  # a bucket is there already
        yield
        return
    folder = local_root(address)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The registry {folder} cannot be made.",
            seen=f"{type(error).__name__}: {error}",
            expected="a folder, or a place where one can be made",
            remedy="choose another folder, or correct its permissions",
        ) from error
    try:
        yield
    except InputError:
        with contextlib.suppress(OSError):  # something lies in it by now: it stays
            for path in made:
                path.rmdir()
        raise
