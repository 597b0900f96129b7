"""Full fine-tuning leaves no adapter to add: its weights are verified against the base and taken over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.manifest import FileEntry
from tunegate.tensors.shards import stored_tensors
from tunegate.tensors.tuned import TensorChange, write_tuned

#: What ``merge.json`` says of the base when there was nothing to be added to one.
MERGE_BASE = "full"


def tuned_sources(base: Path, tuned: Path) -> dict[str, tuple[Path, str]]:
    """Base tensor → the file of the tuned model that holds it.

    Raises:
        AdapterError: when the two models do not have the same tensors of the same shapes.
    """
    before, after = stored_tensors(base), stored_tensors(tuned)
    wrong = [f"{name}: only in the base" for name in before.keys() - after.keys()]
    wrong += [f"{name}: only in the tuned model" for name in after.keys() - before.keys()]
    wrong += [
        f"{name}: base {before[name][1].shape}, tuned {after[name][1].shape}"
        for name in before.keys() & after.keys()
        if before[name][1].shape != after[name][1].shape
    ]
    if wrong:
        raise AdapterError(
            f"The tuned model in {tuned} is not one of this base.",
            seen=f"{len(wrong)} tensor(s) differ in name or shape",
            expected="the tensors of the base, each with its shape",
            remedy="use the base that the model was tuned from",
            items=sorted(wrong),
        )
    return {name: (path, name) for name, (path, _) in after.items()}


def take_over(
    base: Path, sources: Mapping[str, tuple[Path, str]], output: Path, *, dtype: str
) -> tuple[list[TensorChange], list[FileEntry]]:
    """Writes the tuned weights in the base's shards; returns the change of every tensor, and the shards' entries.

    Raises:
        AdapterError: when nothing differs from the base.
    """
    changes, files = write_tuned(base, sources, output, dtype=dtype, step="merge")
    if not any(change.changed for change in changes):
        raise AdapterError(
            "The tuned model is its base.",
            seen=f"0 changed weights of {sum(change.elements for change in changes)}",
            expected="weights that differ from the base after the cast",
            remedy="train again, longer or with a higher learning_rate; or keep a dtype that holds the change",
        )
    return changes, files
