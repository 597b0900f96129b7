"""The dtypes that are really held while training: of the weights, of what trains, and of the computation."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32, BFLOAT16 = 4, 2

#: Methods that train an adapter on a frozen base.
ADAPTERS = ("lora", "qlora", "adalora")


@dataclass(frozen=True)
class Precision:
    """Bytes an element.

    Attributes:
        base: weights that are not in 4 bits.
        trained: parameters that train, and their gradients. Adapters stay in float32, as PEFT makes them.
        stream: the hidden states between layers.
        compute: what matrices are multiplied in.
        autocast: whether float32 operands are cast on the way into each multiplication (a GPU, unless it is told
            float32).
    """

    base: int
    trained: int
    stream: int
    compute: int
    autocast: bool


def precision(method: str, dtype: str, device: str) -> Precision:
    """What ``train`` holds.

    Full fine-tuning keeps float32 masters unless it is told bfloat16; frozen weights are in 16 bits on a GPU.

    Args:
        method: lora, qlora, adalora or full.
        dtype: auto, float32 or bfloat16.
        device: cuda or cpu.
    """
    if dtype == "auto":
        base = BFLOAT16 if device == "cuda" and method in ADAPTERS else FLOAT32
    else:
        base = FLOAT32 if dtype == "float32" else BFLOAT16
    autocast = device == "cuda" and dtype != "float32"
    return Precision(
        base=base,
        trained=FLOAT32 if method in ADAPTERS else base,
        stream=base,
        compute=BFLOAT16 if autocast else base,
        autocast=autocast,
    )
