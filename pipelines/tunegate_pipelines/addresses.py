"""Addresses of a local run: the demo's names become files, and paths become absolute, for steps run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tunegate_pipelines.demo.data import write_rows
from tunegate_pipelines.demo.model import write_base_model

#: (run-form parameter, name) → what makes it below the folder it is given. The names mean something in local runs only.
DEMO: Mapping[tuple[str, str], Callable[[Path], Path]] = {
    ("base_model", "demo"): lambda folder: write_base_model(folder / "base_model"),
    ("dataset", "demo"): lambda folder: write_rows(folder / "rows.jsonl"),
    ("dataset", "demo-wrong"): lambda folder: write_rows(folder / "rows.jsonl", wrong=True),
}

#: Places that a run writes to: they need not exist yet.
_WRITTEN = ("registry", "reuse_evaluations")


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
