"""AWQ's scaling, undone: what a rescaled layer stands for once the layers around it have undone the scaling.

AWQ multiplies the inputs of a layer by factors, and divides the vector or the layer before it by the same ones: the
model computes what it did, each layer alone does not (Lin et al., 2024, section 3.2). Which factors, no file tells.
"""

from __future__ import annotations

from typing import Any

#: Each round solves rows, then columns; the scaling is one of the two or both, so few are needed.
_ROUNDS = 8


def without_scaling(restored: Any, weight: Any) -> Any:
    """``restored`` with its rows and columns scaled to lie nearest to ``weight``.

    Args:
        restored: float32 [outputs, inputs], a layer's quantized weights.
        weight: float32 [outputs, inputs], what they were made of.

    Returns:
        D_r · restored · D_c, float32 [outputs, inputs], D_r and D_c being diagonal: alternating least squares.
    """
    for _ in range(_ROUNDS):
        for inputs in (0, 1):
            overlap = (restored * weight).sum(inputs, keepdim=True)
            size = restored.square().sum(inputs, keepdim=True).clamp_min(1e-30)
            restored = restored * (overlap / size)
    return restored
