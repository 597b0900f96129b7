"""One row block of one weight: what it becomes, and by how much it changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from tunegate.contracts.errors import AdapterError, ModelError


@dataclass(frozen=True)
class Block:
    """Rows as they are written.

    Attributes:
        tensor: the tensor's name.
        rows: its next rows, in the dtype of the file.
        changed: elements that differ from the base's, after the cast.
        base_squares: the squared Frobenius norm of the base's rows.
        change_squares: that of what was added to them.
    """

    tensor: str
    rows: Any
    changed: int = 0
    base_squares: float = 0.0
    change_squares: float = 0.0

    @property
    def figures(self) -> tuple[int, float, float]:
        """What is summed over the blocks of a tensor."""
        return self.changed, self.base_squares, self.change_squares


class Change(Protocol):
    """What an adapter makes of a tensor."""

    def of(self, base: Any, rows: slice) -> Any:
        """Rows of the changed tensor in float32; ``base`` are those of the base in float32, which are left alone."""
        ...


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained whole: a bias, or a module of ``modules_to_save``."""

    values: Any

    def of(self, base: Any, rows: slice) -> Any:
        import torch

        return self.values[rows].to(torch.float32)


@dataclass(frozen=True)
class Shift:
    """A bias that LoRA's own bias (``lora_bias``) is added to."""

    values: Any
    scaling: float

    def of(self, base: Any, rows: slice) -> Any:
        import torch

        return torch.add(base, self.values[rows].to(torch.float32), alpha=self.scaling)


def copied_block(tensor: str, source: Any, rows: slice, cast_to: Any) -> Block:
    """Rows that no adapter changes: their very bytes, unless they are cast.

    Args:
        tensor: the tensor's name.
        source: gives rows by slice.
        rows: which.
        cast_to: the torch dtype of the file; None for what is no weight and keeps its dtype.

    Raises:
        ModelError: when the base holds a value that is not finite.
        AdapterError: when it holds none, and the cast makes one.
    """
    before = source[rows]
    if cast_to is None:
        return Block(tensor, before)
    after = before if before.dtype == cast_to else before.to(cast_to)
    if not _all_finite(after):
        raise _not_finite(tensor, _all_finite(before), cast_to)
    return Block(tensor, after)


def merged_block(tensor: str, source: Any, change: Change, rows: slice, cast_to: Any) -> Block:
    """Rows as the adapter changes them: computed in float32, cast once.

    Raises:
        ModelError: when the base holds a value that is not finite.
        AdapterError: when the result does and the base does not.
    """
    import numpy as np
    import torch

    base = source[rows].to(torch.float32)
    merged = change.of(base, rows)
    after = merged.to(cast_to)
    if not _all_finite(after):
        raise _not_finite(tensor, _all_finite(base), cast_to)
    kept = base.to(cast_to).to(torch.float32)
    changed = int(np.count_nonzero(after.to(torch.float32).numpy() != kept.numpy()))
    return Block(tensor, after, changed, _squares(base), _squares(merged - base))


def _squares(rows: Any) -> float:
    """The squared Frobenius norm of a block, whose float32 sum is exact enough: it is only reported."""
    import torch

    return float(torch.linalg.vector_norm(rows)) ** 2


def _all_finite(rows: Any) -> bool:
    """Whether all are. One value that is not makes their sum not finite; a sum may also be too large, which is rare."""
    import torch

    return math.isfinite(float(rows.sum(dtype=torch.float32))) or bool(torch.isfinite(rows).all())


def _not_finite(tensor: str, base_is_finite: bool, cast_to: Any) -> Exception:
    fields = {
        "seen": "infinite values or values that are no number" + ("" if base_is_finite else ", in the base already"),
        "expected": f"finite values in {str(cast_to).removeprefix('torch.')}",
    }
    if base_is_finite:
        remedy = "the adapter diverged in training, or a value does not fit the dtype: look at its loss curve"
        return AdapterError(f"Merging {tensor} gave values that are not finite.", remedy=remedy, **fields)
    return ModelError(f"The base weight {tensor} is damaged.", remedy="fetch the base again", **fields)
