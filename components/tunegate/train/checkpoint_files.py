"""What a checkpoint holds of the model: every tensor that is trained, as it is, and the state of AdaLoRA's allocator.

PEFT's own format leaves out pruned ranks, which later steps may still need, and casts nothing back. Nothing here is
pickled; the optimizer's state is the trainer's file, which it reads with ``weights_only=True``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.train.adalora import allocator_document, allocator_tensors, restore_allocator

TRAINABLE = "trainable.safetensors"
ALLOCATOR = "allocator.safetensors"
STATE = "tunegate.json"


def write_trainable(model: Any, folder: Path, *, tokens: int, optim: str) -> None:
    """Writes the tensors that are trained, the allocator's, how many tokens have been trained on, and by what."""
    from safetensors.torch import save_file

    save_file(
        {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}, folder / TRAINABLE
    )
    save_file({name: t.contiguous() for name, t in allocator_tensors(model).items()}, folder / ALLOCATOR)
    (folder / STATE).write_bytes(
        pretty_json({"tokens": tokens, "optim": optim, "allocator": allocator_document(model)})
    )


def read_trainable(model: Any, folder: Path) -> int:
    """Puts back what :func:`write_trainable` wrote, bit for bit, and returns the tokens.

    Raises:
        ArtifactError: when the tensors are not those that this model trains.
    """
    import torch
    from safetensors.torch import load_file

    held = load_file(folder / TRAINABLE)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(
        name
        for name in held.keys() | trained.keys()
        if name not in held
        or name not in trained
        or (held[name].shape, held[name].dtype) != (trained[name].shape, trained[name].dtype)
    )
    if wrong:
        raise ArtifactError(
            "The checkpoint is of another model.",
            seen=f"{len(wrong)} tensors differ in name, shape or dtype",
            expected=f"the {len(trained)} tensors that are trained",
            remedy="remove the checkpoints of this work, or run with the versions that wrote them",
            items=wrong,
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(held[name])
    state = read_json_object(folder / STATE)
    restore_allocator(model, load_file(folder / ALLOCATOR), state["allocator"])
    return int(state["tokens"])
