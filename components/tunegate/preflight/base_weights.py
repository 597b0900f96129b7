"""The base model's weights as they lie in memory: in one dtype, or in NF4 with the constants to undo it."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.preflight.model_shape import Linear, ModelShape
from tunegate.preflight.precision import FLOAT32

#: bitsandbytes: weights that share a scale, and scales that share one when they are quantized as well.
_BLOCK, _NESTED_BLOCK = 64, 256

#: The lookup tables of a 4-bit module: 16 values of NF4, and 256 of the quantized scales with their mean.
_TABLE, _NESTED_TABLE = 16 * FLOAT32, 256 * FLOAT32 + FLOAT32


@dataclass(frozen=True)
class BaseWeights:
    """Bytes of the base model.

    Attributes:
        weights: in their dtype, or packed two to a byte.
        constants: scales and tables of the 4-bit modules; 0 without them.
        explanation: the arithmetic of the weights.
        constants_explanation: that of the constants.
    """

    weights: int
    constants: int
    explanation: str
    constants_explanation: str


def plain_weights(shape: ModelShape, element: int) -> BaseWeights:
    """All weights in one dtype of ``element`` bytes."""
    return BaseWeights(shape.parameters * element, 0, f"{shape.parameters:,} parameters × {element} B", "")


def nf4_weights(shape: ModelShape, element: int, *, double_quant: bool) -> BaseWeights:
    """Linear modules of the layers in NF4; embeddings, norms, biases and the output head in ``element`` bytes.

    Double quantization keeps a byte for 64 weights and a float32 for 256 of those bytes: 8/64 + 32/(64·256) = 0.127
    bits a weight rather than 0.5 (arXiv:2305.14314, section 3).
    """
    rest = shape.parameters - shape.linear_weights
    packed = shape.num_hidden_layers * sum(-(-linear.weights // 2) for linear in shape.linears)
    constants = shape.num_hidden_layers * sum(_constants(linear, double_quant) for linear in shape.linears)
    each = "8/64 + 32/(64·256)" if double_quant else "32/64"
    return BaseWeights(
        weights=packed + rest * element,
        constants=constants,
        explanation=f"{shape.linear_weights:,} weights of linear modules × 0.5 B + {rest:,} others × {element} B",
        constants_explanation=f"{shape.linear_weights:,} weights × ({each}) bit, and a table a module",
    )


def _constants(linear: Linear, double_quant: bool) -> int:
    blocks = -(-linear.weights // _BLOCK)
    if not double_quant:
        return blocks * FLOAT32 + _TABLE
    return blocks + -(-blocks // _NESTED_BLOCK) * FLOAT32 + _TABLE + _NESTED_TABLE
