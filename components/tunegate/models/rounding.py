"""The evaluated model with its last bits moved: how far rounding alone carries an answer.

Two engines add the same products in another order, so that each sum differs by about a last bit. What that does to an
answer depends on the model: where activations are quantized as they come, a last bit moves a code now and then, and
with it all that follows. It is measured rather than assumed, by the Monte Carlo arithmetic of D. S. Parker (1997):
compute again with every operand's last bit at random, and see how far the result moves.

Where activations become integers, engines also lay the codes otherwise: compressed-tensors (0.19) divides a token's
largest number by 127.5, vLLM (0.32) by 127. Which of two codes a number gets is then as good as random, and is moved
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

#: How far a number is moved at most, in codes, to change codes as often as laying them otherwise does: rounding x and
#: x + d for d uniform in [−a, a] gives other codes with probability a / 2, rounding to two unrelated grids of equal
#: step differs by a variance of 1 / 6 code².
CODES_MOVED = 1 / 3


@contextlib.contextmanager
def last_bits_moved(model: Any, *, seed: int) -> Iterator[None]:
    """While it lasts, what enters each linear layer is multiplied by 1 + u·ε, u uniform in [−1, 1] for each number.

    ε is the distance from 1 to the next number of the activations' dtype. Where the layer turns its input into
    integers, it is moved by a third of a code instead.

    Args:
        model: a model of transformers.
        seed: of the random numbers.
    """
    import torch

    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)

    def moved(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = inputs
        u = torch.rand(first.shape, generator=generator, device=first.device, dtype=torch.float64) * 2 - 1
        exact = first.to(torch.float64)
        bits = _integer_bits(module)
        code = exact.abs().amax(-1, keepdim=True) / 2 ** (bits - 1) if bits else None
        move = torch.finfo(first.dtype).eps * exact if code is None else CODES_MOVED * code
        return ((exact + u * move).to(first.dtype), *rest)

    hooks = [m.register_forward_pre_hook(moved) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _integer_bits(module: Any) -> int:
    """To how many bits a layer of compressed-tensors rounds its input as integers; 0 for any other layer."""
    activations = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
    return int(activations.num_bits) if activations is not None and activations.type == "int" else 0
