"""LoRA's algebra: what a pair of factors makes of a weight (arXiv:2106.09685), row by row.

AdaLoRA's triplets (arXiv:2303.10512) are pairs as well: ``P·Λ·Q = B·(E·A)``, where E scales the rows of A. DoRA
(arXiv:2402.09353) gives each output of the sum the length of its own that training found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoraPair:
    """One adapted module: ``ΔW = scaling · B·A``, or ``scaling · B·(E·A)`` of AdaLoRA.

    Attributes:
        module: its name in the base, for example ``model.layers.0.self_attn.q_proj``.
        rank: r of this module; AdaLoRA may have left 0.
        scaling: alpha/r, or alpha/sqrt(r) with rsLoRA; alpha/init_r of AdaLoRA, whatever rank is left.
        a, b: the tensors' names in the adapter file, ``A: r × in``, ``B: out × r``.
        shape: (out, in).
        e: the name of AdaLoRA's singular values, ``E: r × 1``.
        magnitude: the name of DoRA's lengths, ``out``.
        stored_by_input: whether the base holds the weight ``in × out``: embeddings, and GPT-2's Conv1D.
        embedding: whether the module looks rows up: its inputs are the vocabulary.
    """

    module: str
    rank: int
    scaling: float
    a: str
    b: str
    shape: tuple[int, int]
    e: str | None = None
    magnitude: str | None = None
    stored_by_input: bool = False
    embedding: bool = False

    @property
    def weight(self) -> str:
        """The base tensor that the pair changes."""
        return f"{self.module}.weight"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The shape that the weight has in the base's file."""
        outputs, inputs = self.shape
        return (inputs, outputs) if self.stored_by_input else (outputs, inputs)


def read_factors(tensors: Any, pair: LoraPair) -> tuple[Any, Any]:
    """A and B of a pair in float32, with AdaLoRA's singular values folded into A: ``A: r × in``, ``B: out × r``.

    Args:
        tensors: an open safetensors file of the adapter.
        pair: which of its tensors.
    """
    import torch

    a, b = (tensors.get_tensor(name).to(torch.float32) for name in (pair.a, pair.b))
    return (a if pair.e is None else a * tensors.get_tensor(pair.e).to(torch.float32)), b


@dataclass(frozen=True)
class Update:
    """What a pair makes of a weight as it is stored: ``W + scaling · left·right``, and DoRA's lengths.

    Attributes:
        left: ``rows × r``, float32: B, or Aᵀ of a weight that is stored by input.
        right: ``r × columns``, float32.
        scaling: of the product.
        magnitude: DoRA's lengths, float32, one for each output; None without DoRA.
        outputs_are_rows: whether a row of the stored weight is an output.
        lengths: of the columns of the whole sum, where DoRA's outputs are columns: no row block knows them.
    """

    left: Any
    right: Any
    scaling: float
    magnitude: Any = None
    outputs_are_rows: bool = True
    lengths: Any = None

    def of(self, base: Any, rows: slice) -> Any:
        """Rows of the changed weight in float32; ``base`` are those of the base in float32, which are left alone."""
        merged = self._sum(base, rows)
        if self.magnitude is None:
            return merged
        if self.outputs_are_rows:
            return merged.mul_((self.magnitude[rows] / _lengths(merged)).unsqueeze(1))
        return merged.mul_(self.magnitude / self.lengths)

    def _sum(self, base: Any, rows: slice) -> Any:
        import torch

        return torch.addmm(base, self.left[rows], self.right, alpha=self.scaling)

    def squared_columns(self, base: Any, rows: slice) -> Any:
        """What these rows of the sum add to the squared length of each column, in float64."""
        return self._sum(base, rows).square_().sum(dim=0).double()


def _lengths(rows: Any) -> Any:
    """The Euclidean length of each row, as PEFT computes it."""
    import torch

    return torch.linalg.vector_norm(rows, dim=1)


def read_update(tensors: Any, pair: LoraPair, blocks: Iterable[slice], base_rows: Callable[[slice], Any]) -> Update:
    """The update of a pair, ready to be applied to any of its rows.

    DoRA on a weight that is stored by input needs the lengths of whole columns: the base is then read once more, in the
    same blocks.

    Args:
        tensors: an open safetensors file of the adapter.
        pair: which of its tensors.
        blocks: slices over all rows of the stored weight.
        base_rows: rows of the base in float32.
    """
    import torch

    a, b = read_factors(tensors, pair)
    left, right = (a.T.contiguous(), b.T.contiguous()) if pair.stored_by_input else (b, a)
    if pair.magnitude is None:
        return Update(left, right, pair.scaling)
    magnitude = tensors.get_tensor(pair.magnitude).to(torch.float32).flatten()
    if not pair.stored_by_input:
        return Update(left, right, pair.scaling, magnitude)
    plain = Update(left, right, pair.scaling)
    squares = torch.zeros(len(magnitude), dtype=torch.float64)
    for rows in blocks:
        squares += plain.squared_columns(base_rows(rows), rows)
    return Update(left, right, pair.scaling, magnitude, outputs_are_rows=False, lengths=squares.sqrt().float())
