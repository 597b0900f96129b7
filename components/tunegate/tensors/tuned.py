"""Weights that were all tuned, in the layout of their base: the same shards, names and shapes, cast once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.contracts.manifest import FileEntry
from tunegate.contracts.progress import ByteProgress
from tunegate.tensors.shards import (
    BLOCK_BYTES,
    FLOAT_DTYPES,
    ShardWriter,
    TensorSpec,
    cast_spec,
    read_specs,
    row_blocks,
    shard_names,
    torch_dtype,
    write_index,
)


@dataclass(frozen=True)
class TensorChange:
    """What tuning did to one tensor.

    Attributes:
        weight: the tensor's name.
        changed: elements that differ from the base's, after the cast.
        elements: all elements.
        relative_change: Frobenius norm of the difference over that of the base.
    """

    weight: str
    changed: int
    elements: int
    relative_change: float


def write_tuned(
    base: Path, tuned: Mapping[str, tuple[Path, str]], output: Path, *, dtype: str, step: str
) -> tuple[list[TensorChange], list[FileEntry]]:
    """Writes shards of the base's names with the tuned weights, and their index.

    Args:
        base: the base model folder.
        tuned: base tensor → the safetensors file and the name there of what it became, of the same shape; a tensor that
            is not named is copied from the base.
        output: where the shards are written.
        dtype: ``auto`` keeps each tensor's dtype in the base; else that of every floating-point tensor written.
        step: what the progress is said under.

    Returns:
        The change of every tuned floating-point tensor, in the order of the base; and the shards' entries, hashed while
        they were written.

    Raises:
        RunError: when a tuned weight is not finite.
    """
    specs_of = {name: read_specs(base / name) for name in shard_names(base)}
    shards = {
        name: {tensor: cast_spec(spec, dtype) for tensor, spec in specs.items()} for name, specs in specs_of.items()
    }
    progress = ByteProgress(step, sum(spec.size_bytes for specs in shards.values() for spec in specs.values()))
    changes: list[TensorChange] = []
    files: list[FileEntry] = []
    for name, specs in specs_of.items():
        with ShardWriter(output / name, shards[name]) as out:
            for tensor, spec in specs.items():
                source = tuned.get(tensor, (base / name, tensor))
                change = _write_tensor(out, tensor, spec, shards[name][tensor], base / name, source, progress)
                changes += [change] if change and tensor in tuned else []
        files.append(out.entry)
    write_index(output, shards)
    return changes, files


def _write_tensor(
    out: ShardWriter,
    tensor: str,
    spec: TensorSpec,
    target: TensorSpec,
    base: Path,
    source: tuple[Path, str],
    progress: ByteProgress,
) -> TensorChange | None:
    from safetensors import safe_open

    path, name = source
    with safe_open(str(base), framework="pt") as before_file, safe_open(str(path), framework="pt") as after_file:
        if spec.dtype not in FLOAT_DTYPES:
            out.write(after_file.get_tensor(name))
            progress.advance(target.size_bytes)
            return None
        before, after = _rows(before_file, tensor, spec), _rows(after_file, name, spec)
        cast_to = torch_dtype(target.dtype)
        rows = spec.shape[0] if spec.shape else 1
        changed, difference_squares, base_squares = 0, 0.0, 0.0
        for block in row_blocks(rows, 4 * spec.elements // max(rows, 1), BLOCK_BYTES):
            base_rows, tuned_rows = before[block], after[block]
            written = tuned_rows.to(cast_to)
            _refuse_not_finite(tensor, written, target.dtype)
            changed += int((written != base_rows.to(cast_to)).sum())
            difference_squares += float((tuned_rows.double() - base_rows.double()).square().sum())
            base_squares += float(base_rows.double().square().sum())
            out.write(written)
            progress.advance(written.numel() * written.element_size())
    relative = (difference_squares / base_squares) ** 0.5 if base_squares else float(difference_squares > 0)
    return TensorChange(tensor, changed, spec.elements, round(relative, 9))


def _rows(file: Any, name: str, spec: TensorSpec) -> Any:
    """Something that gives rows by slice; a scalar is a row of one."""
    return file.get_slice(name) if spec.shape else file.get_tensor(name).reshape(1)


def _refuse_not_finite(tensor: str, rows: Any, dtype: str) -> None:
    if not bool(rows.isfinite().all()):
        raise RunError(
            f"The tuned weight {tensor} is not finite.",
            seen="infinite values or values that are no number",
            expected=f"finite values in {dtype}",
            remedy="the training diverged: lower learning_rate, and look at its loss curve",
        )
