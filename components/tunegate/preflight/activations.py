"""What autograd keeps of a decoder layer for its backward pass, tensor by tensor.

The list follows transformers' Llama layer and PEFT's adapters as they run here: rows without padding, each attending to
itself through PyTorch's fused attention, so that no tokens × tokens matrix exists. A frozen linear keeps nothing of its
input; an adapter on it keeps the input for the gradient of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.preflight.model_shape import Linear, ModelShape
from tunegate.preflight.precision import BFLOAT16, FLOAT32, Precision


@dataclass(frozen=True)
class Layout:
    """What is trained, and how it runs.

    Attributes:
        shape: the model.
        held: the dtypes.
        method: lora, qlora, adalora or full.
        adapted: the linear modules with an adapter; empty when every weight trains.
        rank: the adapters' rank.
        dropout: whether the adapters' inputs are dropped out.
        device: cuda or cpu.
    """

    shape: ModelShape
    held: Precision
    method: str
    adapted: tuple[Linear, ...]
    rank: int
    dropout: bool
    device: str

    @property
    def full(self) -> bool:
        """Whether every weight trains."""
        return self.method == "full"

    def trains(self, *names: str) -> int:
        """How many of these linear modules need their input for a gradient."""
        return len(names) if self.full else sum(linear.name in names for linear in self.adapted)


def layer_token_bytes(layout: Layout) -> int:
    """Bytes that one token leaves behind in one layer."""
    shape, compute = layout.shape, layout.held.compute
    queries, keys, inner = shape.query_width, shape.key_width, shape.intermediate_size
    kept = shape.layer_norms * _norm(layout, shape.hidden_size, 1, layout.held.stream)
    if shape.qk_norm:
        kept += _norm(layout, queries, shape.num_attention_heads, compute)
        kept += _norm(layout, keys, shape.num_key_value_heads, compute)
    kept += (2 * queries + 2 * keys) * compute + shape.num_attention_heads * FLOAT32  # q, k, v, output; logsumexp
    kept += 3 * inner * compute  # gate, its activation, up
    kept += _inputs(layout, shape.hidden_size, "q_proj", "k_proj", "v_proj")
    kept += _inputs(layout, queries, "o_proj")
    kept += _inputs(layout, shape.hidden_size, "gate_proj", "up_proj")
    kept += _inputs(layout, inner, "down_proj")
    return kept + len(layout.adapted) * layout.rank * _adapter_element(layout)


def layer_fixed_bytes(layout: Layout) -> int:
    """Bytes that one layer leaves behind whatever the number of tokens: casts and products of what trains."""
    held = layout.held
    if layout.full:
        weights = sum(linear.weights for linear in layout.shape.linears)
        return weights * BFLOAT16 if held.autocast and held.base == FLOAT32 else 0
    both = sum(linear.inputs + linear.outputs for linear in layout.adapted) * layout.rank
    product = sum(linear.inputs for linear in layout.adapted) * layout.rank  # AdaLoRA: E·A
    if held.autocast:
        return both * BFLOAT16
    return product * FLOAT32 if layout.method == "adalora" else 0


def checkpoint_token_bytes(layout: Layout) -> int:
    """Bytes that one token leaves behind in one layer with gradient checkpointing: the layer's input."""
    return layout.shape.hidden_size * layout.held.stream


def edge_token_bytes(layout: Layout) -> int:
    """Bytes that one token leaves behind outside the layers: rotations, the last norm, token ids and positions."""
    rotations = 2 * layout.shape.head_dim * layout.held.stream
    return rotations + _norm(layout, layout.shape.hidden_size, 1, layout.held.stream) + 3 * 8


def layer_output_token_bytes(layout: Layout) -> int:
    """Bytes of what the linear modules of a layer give out for one token: most of what comes and goes in a pass."""
    return sum(linear.outputs for linear in layout.shape.linears) * layout.held.compute


def layer_backward_token_bytes(layout: Layout) -> int:
    """Bytes for one token while a layer's gradients are computed, beyond what the layer left: at their most in the MLP.

    The gradients of the product, of the activation and of the up projection live at once, when the product itself is
    gone; an adapter that casts its input has its gradient in float32 as well. That of the stream is there throughout.
    """
    shape, held = layout.shape, layout.held
    casts = not layout.full and _adapter_casts(layout)
    return (3 if casts else 2) * shape.intermediate_size * held.compute + 2 * shape.hidden_size * held.stream


def _norm(layout: Layout, width: int, vectors: int, element: int) -> int:
    """A norm keeps its input in float32 and a scale a vector; its normalised input as well when its weight trains."""
    normalised = FLOAT32 if layout.shape.float_norm else element
    return width * FLOAT32 + vectors * FLOAT32 + (width * normalised if layout.full else 0)


def _inputs(layout: Layout, width: int, *names: str) -> int:
    """What linear modules with one common input keep of it: once, or once each where each casts it for itself."""
    held, modules = layout.held, layout.trains(*names)
    if not modules:
        return 0
    if layout.full:
        casts = held.autocast and held.base == FLOAT32
        return width * held.compute * (modules if casts and _is_stream(names) else 1)
    copy = width * _adapter_element(layout)
    if layout.dropout:
        return modules * (copy + width * (1 if layout.device == "cuda" else FLOAT32))
    return copy * (modules if _adapter_casts(layout) else 1)


def _adapter_casts(layout: Layout) -> bool:
    """Whether each adapter makes its own copy of its input.

    PEFT casts a 16-bit input to the adapter's float32; its 4-bit layers leave that to autocast.
    """
    held = layout.held
    return held.base == BFLOAT16 and not (layout.method == "qlora" and held.autocast)


def _is_stream(names: Sequence[str]) -> bool:
    """Whether the input comes from the stream between layers; the others come out of a multiplication, cast already."""
    return "q_proj" in names or "gate_proj" in names


def _adapter_element(layout: Layout) -> int:
    """Bytes an element of what an adapter keeps."""
    return BFLOAT16 if layout.held.autocast else FLOAT32
