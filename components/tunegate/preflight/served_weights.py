"""How much memory a served model's weights take, by scheme: from shapes alone."""

from __future__ import annotations

from tunegate.contracts.schemes import SCHEMES
from tunegate.preflight.model_shape import Linear, ModelShape
from tunegate.preflight.precision import FLOAT32

#: What is not quantized is served in 16 bits, and so is the scale of a group.
_HALF = 2

#: 4-bit codes lie eight to a word of 32 bits; those of a row and of a column of zero points are filled up.
_CODES_IN_WORD, _WORD = 8, 4


def plain_bytes(shape: ModelShape) -> int:
    """The weights as they are, in 16 bits."""
    return shape.parameters * _HALF


def served_bytes(shape: ModelShape, scheme: str, *, group_size: int) -> int:
    """The weights with the linear layers of a scheme; embeddings, norms, biases and the output head in 16 bits.

    Args:
        shape: the model's widths.
        scheme: the scheme.
        group_size: inputs that share a scale, for a scheme with groups.
    """
    layer = sum(_linear_bytes(linear, scheme, group_size) for linear in shape.linears)
    return shape.num_hidden_layers * layer + (shape.parameters - shape.linear_weights) * _HALF


def _linear_bytes(linear: Linear, scheme: str, group_size: int) -> int:
    """8-bit schemes keep a float32 scale for each output, FP8 one for the layer and one for its inputs."""
    stored = SCHEMES[scheme]
    if not stored.grouped:
        scales = 2 if stored.static_activations else linear.outputs
        return linear.weights + scales * FLOAT32
    groups = linear.inputs // group_size
    codes = linear.outputs * -(-linear.inputs // _CODES_IN_WORD) * _WORD
    points = 0 if stored.symmetric else -(-linear.outputs // _CODES_IN_WORD) * _WORD * groups
    return codes + linear.outputs * groups * _HALF + points
