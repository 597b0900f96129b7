"""A fully tuned model on disk: a whole model folder in the layout of its base, equal bytes for equal weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, RunError
from tunegate.models.companions import companion_files, copy_files
from tunegate.models.quiet import quiet
from tunegate.tensors.shards import stored_tensors
from tunegate.tensors.tuned import TensorChange, write_tuned


def refuse_quantized(config: Mapping[str, Any], base_model: Path) -> None:
    """Refuses a base whose weights are quantized: there is nothing that could be tuned and stored again.

    Raises:
        ModelError: naming the quantization.
    """
    if config.get("quantization_config"):
        raise ModelError(
            f"{base_model} is quantized.",
            seen=f"quantization_config {config['quantization_config'].get('quant_method', '')}",
            expected="16-bit or float32 weights, all of which are trained with method: full",
            remedy="give the model that the quantized one was made from",
        )


def save_full(model: Any, folder: Path, *, base_model: Path) -> list[TensorChange]:
    """Writes the tuned weights, each cast once to the dtype it has in the base, with the base's other files.

    transformers saves what it trained; that copy, in the precision of the training, is compared with the base tensor by
    tensor and written again in the base's shards, so that names, dtypes, tied weights and bytes do not depend on the
    library's version. It takes as much disk as the training's weights, and is gone afterwards.

    Args:
        model: the trained model.
        folder: where ``config.json``, ``*.safetensors``, the tokenizer and the generation settings are written.
        base_model: the folder that the model was loaded from.

    Returns:
        The change of every tuned tensor.

    Raises:
        ModelError: when the model no longer has the tensors of its base.
        RunError: when no weight differs from the base's, or one is not finite.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with quiet():
            model.save_pretrained(scratch)
        sources = _sources(base_model, Path(scratch), getattr(model, "all_tied_weights_keys", {}))
        changes, _ = write_tuned(base_model, sources, folder, dtype="auto", step="train")
    _refuse_unchanged(changes)
    copy_files([base_model / "config.json", *companion_files(base_model)], folder)
    return changes


def changed_share(changes: Sequence[TensorChange]) -> float:
    """The share of all tuned weights that differ from the base's as they are stored."""
    return sum(change.changed for change in changes) / sum(change.elements for change in changes)


def _sources(base: Path, saved: Path, tied: Mapping[str, str]) -> dict[str, tuple[Path, str]]:
    """Base tensor → file and name of what it became. A tensor that the architecture does not load keeps its bytes."""
    before, after = stored_tensors(base), stored_tensors(saved)
    twins = {**{source: target for target, source in tied.items()}, **tied}
    names = {name: name if name in after else twins.get(name, name) for name in before}
    sources = {name: (after[found][0], found) for name, found in names.items() if found in after}
    wrong = [f"{name}: not in the base" for name in after if name not in names.values()]
    wrong += [
        f"{name}: base {before[name][1].shape}, trained {after[found][1].shape}"
        for name, (_, found) in sources.items()
        if before[name][1].shape != after[found][1].shape
    ]
    if wrong:
        raise ModelError(
            "The trained model no longer has the tensors of its base.",
            seen=f"{len(wrong)} tensor(s) differ in name or shape",
            expected="the names and shapes of the base's files",
            remedy="train an adapter instead; and report this with the model's config.json",
            items=wrong,
        )
    return sources


def _refuse_unchanged(changes: list[TensorChange]) -> None:
    if not any(change.changed for change in changes):
        raise RunError(
            "The training changed no weight.",
            seen=f"0 of {sum(c.elements for c in changes)} weights differ after the cast to their stored dtype",
            expected="weights that differ from the base's",
            remedy="raise learning_rate or train longer: smaller updates than the stored dtype's precision are lost",
        )
