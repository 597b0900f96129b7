"""The model's files on both sides of the worker: a config that an old transformers reads, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, RunError

_SHARD_SIZE = "5GB"


def readable_copy(source: Path, scratch: Path) -> Path:
    """A folder with links to the weights of ``source``, and its config in the words of transformers 4.

    transformers 5 writes ``rope_parameters`` and ``dtype``; version 4 knows neither, and would take rotary embeddings
    of its own default without a word.

    Raises:
        ModelError: when version 4 has no words for what the config says.
    """
    for path in [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")]:
        (scratch / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text("utf-8"))
    (scratch / "config.json").write_text(json.dumps(old_config(config)), "utf-8")
    return scratch


def old_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 as version 4 has it.

    Raises:
        ModelError: when it has none.
    """
    old = dict(config)
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None)
    if rope is None:
        return old
    if any(isinstance(value, dict) for value in rope.values()):
        raise ModelError(
            "The model has rotary embeddings that this backend's transformers does not know.",
            seen=f"rope_parameters for each of {', '.join(rope)}",
            expected="one set of rope_parameters for every layer",
            remedy="use backend llmcompressor",
        )
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    return old


def save(
    model: Any, source: Path, folder: Path, *, layers: tuple[str, ...], parts: tuple[str, ...], stated: dict[str, Any]
) -> None:
    """Writes the quantized layers, and everything else as it lies in ``source``.

    Args:
        model: the quantized model of transformers.
        source: the model that was quantized.
        folder: where to.
        layers: the quantized layers.
        parts: the tensors that each of them has.
        stated: ``quantization_config`` in config.json.

    Raises:
        RunError: when a layer was not quantized.
    """
    from huggingface_hub import save_torch_state_dict

    state, weights = model.state_dict(), {f"{layer}.weight" for layer in layers}
    if missing := [f"{layer}.{part}" for layer in layers for part in parts if f"{layer}.{part}" not in state]:
        raise RunError(
            f"{len(missing)} tensors of quantized layers are missing.",
            seen=f"{len(missing)} of {len(layers) * len(parts)}",
            expected="every layer quantized",
            remedy="use backend llmcompressor",
            items=missing,
        )
    made = {f"{layer}.{part}": state[f"{layer}.{part}"] for layer in layers for part in parts}
    for name, tensor in _tensors(source):
        if name not in weights:
            made[name] = _kept(tensor, state.get(name))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
    save_torch_state_dict(plain, folder, max_shard_size=_SHARD_SIZE)
    config = json.loads((source / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}, indent=2), "utf-8")


def _tensors(source: Path) -> Any:
    from safetensors import safe_open

    for shard in sorted(source.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                yield name, file.get_tensor(name)


def _kept(tensor: Any, now: Any) -> Any:
    """A tensor that was not quantized: its own bytes, but for a vector that AWQ has rescaled."""
    import torch

    if now is None or tensor.ndim != 1 or torch.equal(tensor.to(now.dtype), now.to(tensor.device)):
        return tensor
    return now.to(tensor.dtype)
