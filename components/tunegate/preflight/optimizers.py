"""What an optimizer keeps: AdamW's two moments, in the dtype of the parameter, in float32, or in 8 bits with scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.preflight.precision import FLOAT32
from tunegate.preflight.trainable import Tensors

FUSED, PLAIN, PAGED, PAGED_8BIT = "adamw_torch_fused", "adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"

#: bitsandbytes 0.50, ``optim/optimizer.py``: smaller tensors keep 32-bit states, and smaller ones are never paged.
_MIN_8BIT, _MIN_PAGED = 4096, 100_000

#: Elements that share one float32 scale of an 8-bit state.
_BLOCK = 256

_MOMENTS = 2


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes of the optimizer.

    Attributes:
        states: the two moments of every trained parameter.
        pageable: the part of them that can leave the device while it is not used.
        step: what a step needs beside states and gradients.
    """

    states: int
    pageable: int
    step: int


def optimizer_memory(optim: str, tensors: Sequence[Tensors], *, trained: int, device: str) -> OptimizerMemory:
    """What ``optim`` takes.

    Args:
        optim: one of this module's names.
        tensors: what trains.
        trained: bytes of an element of it.
        device: cuda or cpu; only a GPU's memory can be paged out.
    """
    element = trained if optim in (FUSED, PLAIN) else FLOAT32
    states = [(group, group.count * _states(group, element, eight_bit=optim == PAGED_8BIT)) for group in tensors]
    paged = optim in (PAGED, PAGED_8BIT) and device == "cuda"
    largest = max((group.numel for group in tensors), default=0)
    everything = sum(group.elements for group in tensors)
    # PyTorch's plain AdamW computes the square roots of all second moments at once on a GPU, of one tensor on a CPU.
    step = {FUSED: 0, PLAIN: everything * trained if device == "cuda" else 2 * largest * trained}.get(optim, 0)
    return OptimizerMemory(
        states=sum(size for _, size in states),
        pageable=sum(size for group, size in states if paged and group.numel >= _MIN_PAGED),
        step=step,
    )


def _states(group: Tensors, element: int, *, eight_bit: bool) -> int:
    """Bytes of one tensor's two moments."""
    if eight_bit and group.numel >= _MIN_8BIT and not group.embedding:
        return _MOMENTS * (group.numel + -(-group.numel // _BLOCK) * FLOAT32)
    return _MOMENTS * group.numel * element
