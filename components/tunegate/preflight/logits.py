"""The memory of the output head: logits exist where there are labels, at once while small, in tiles otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.preflight.activations import Layout
from tunegate.preflight.precision import FLOAT32

#: Float32 logits up to this size are made at once; above it train leaves them to TRL's fused head, which works in tiles
#: and takes several times as long on a CPU.
AT_ONCE_BYTES = 512 << 20

#: The logits' log-softmax, the gradient of the loss and the gradient of the logits live at once.
_COPIES_AT_ONCE = 3

#: TRL 1.16, ``kernels/chunked_logprob.py`` and ``trainer/utils.py``: rows and columns of a tile.
TILE_ROWS, TILE_COLUMNS = 4096, 32768

#: Without Triton, TRL turns a tile into its gradient in this many float32 copies of it, beside the tile itself.
_CPU_TILE_COPIES = 7.25

#: Running statistics of the tiles, in float32 for every token.
_STATISTICS = 7


@dataclass(frozen=True)
class HeadMemory:
    """What the output head takes at its most, beside its weights.

    Attributes:
        bytes: logits, their gradients, and what the head hands back to the layers.
        explanation: the arithmetic.
    """

    bytes: int
    explanation: str


def head_memory(layout: Layout, tokens: int, labelled: int | None) -> HeadMemory:
    """The head's memory for one batch.

    Args:
        layout: what runs.
        tokens: tokens of the batch.
        labelled: how many of them have a label; None when any number may: then it is the worst of all.
    """
    most = AT_ONCE_BYTES // (layout.shape.vocab_size * FLOAT32)
    if labelled is not None:
        return _at_once(layout, labelled) if labelled <= most else _tiled(layout, tokens, labelled)
    at_once = _at_once(layout, min(tokens, most))
    return at_once if tokens <= most else max(at_once, _tiled(layout, tokens, tokens), key=lambda found: found.bytes)


def _at_once(layout: Layout, labelled: int) -> HeadMemory:
    shape, held = layout.shape, layout.held
    logits = labelled * shape.vocab_size * FLOAT32
    softcap = labelled * shape.vocab_size * held.compute if shape.softcap else 0
    hidden = labelled * shape.hidden_size * held.stream
    return HeadMemory(
        bytes=logits * _COPIES_AT_ONCE + softcap + hidden,
        explanation=f"{labelled:,} labelled tokens × {shape.vocab_size:,} × 4 B, {_COPIES_AT_ONCE} times: log-softmax, "
        "gradient of the loss, gradient of the logits",
    )


def _tiled(layout: Layout, tokens: int, labelled: int) -> HeadMemory:
    shape, held = layout.shape, layout.held
    on_gpu = layout.device == "cuda"
    scored = labelled if on_gpu else tokens  # without Triton TRL scores every position
    rows, columns = min(scored, TILE_ROWS), min(shape.vocab_size, TILE_COLUMNS)
    tile = rows * TILE_COLUMNS * held.compute
    copies = 0 if on_gpu else int(rows * columns * FLOAT32 * _CPU_TILE_COPIES)
    casts = (columns + rows) * shape.hidden_size * held.compute if held.compute < held.base else 0
    hidden = scored * shape.hidden_size * (held.stream + FLOAT32) + scored * _STATISTICS * FLOAT32
    told = "" if on_gpu else f", {_CPU_TILE_COPIES} float32 copies of it (no Triton on a CPU)"
    return HeadMemory(
        bytes=tile + copies + casts + hidden,
        explanation=f"tile of {rows:,} × {TILE_COLUMNS:,} × {held.compute} B{told}; hidden states of {scored:,} tokens "
        f"and their gradient: × {shape.hidden_size:,} × ({held.stream} + 4) B",
    )
