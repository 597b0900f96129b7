"""The streaming merge: what an adapter makes of each weight, in float32, cast once, in row blocks of bounded size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.manifest import FileEntry
from tunegate.contracts.progress import ByteProgress
from tunegate.merge.block import Block, Change, Replacement, Shift, copied_block, merged_block
from tunegate.models.nf4_kernel import refuse_wrong_kernel
from tunegate.tensors.adapter import Changes
from tunegate.tensors.adapter_config import ADAPTER_WEIGHTS
from tunegate.tensors.lora import LoraPair, read_update
from tunegate.tensors.nf4 import round_trip
from tunegate.tensors.parallel import in_order, one_torch_thread, worker_count
from tunegate.tensors.shards import (
    BLOCK_BYTES,
    FLOAT_DTYPES,
    ShardWriter,
    TensorSpec,
    cast_spec,
    read_specs,
    row_blocks,
    shard_names,
    torch_dtype,
    write_index,
)


@dataclass(frozen=True)
class MergedModule:
    """What the merge did to one tensor.

    Attributes:
        weight: the tensor's name.
        rank: r of its pair; None of a tensor that was trained whole.
        changed: elements that differ from the base they were added to, after the cast.
        elements: all elements.
        relative_change: Frobenius norm of the change over that of the base.
    """

    weight: str
    rank: int | None
    changed: int
    elements: int
    relative_change: float


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        modules: every tensor that the adapter changes, in the order of the files.
        files: the shards, hashed while they were written.
    """

    modules: list[MergedModule]
    files: list[FileEntry]


@dataclass(frozen=True)
class _Weight:
    """A tensor to be written: its name, the base's tensor that it starts from, and what both files say of it."""

    name: str
    source: str
    held: TensorSpec
    written: TensorSpec

    def blocks(self) -> Iterator[slice]:
        rows = self.held.shape[0] if self.held.shape else 1
        return row_blocks(rows, 4 * self.held.elements // max(rows, 1), BLOCK_BYTES)


def merge_shards(
    base: Path, adapter: Path, output: Path, changes: Changes, four_bit: Mapping[str, Any] | None, dtype: str
) -> Merged:
    """Writes the merged shards and their index. The bytes do not depend on how many threads compute them.

    Args:
        base: the 16-bit base model folder.
        adapter: the adapter folder.
        output: where shards of the same names are written.
        changes: what the adapter changes.
        four_bit: how the base was held in 4 bits (``training.json``), for the weights to be round-tripped; None keeps
            the original weights.
        dtype: ``auto`` or the dtype of every floating-point weight written.

    Raises:
        AdapterError: when the merge changed nothing, a pair was left unused, made values that are not finite, or the
            adapter was trained on other embeddings or on modules that the base does not have.
        ModelError: when the base is damaged, or this machine cannot compute its 4-bit form.
    """
    from safetensors import safe_open

    stored = {name: read_specs(base / name) for name in shard_names(base)}
    shards = _written(stored, changes, dtype)
    round_tripped = {f"{module}.weight" for module in (four_bit or {}).get("modules", ())}
    whole = {tensor: spec for specs in stored.values() for tensor, spec in specs.items()}
    _refuse_missing_round_trips(round_tripped - whole.keys())
    if four_bit:
        refuse_wrong_kernel(
            {tensor: whole[tensor].shape[1] for tensor in sorted(round_tripped)},
            block_size=four_bit["block_size"],
            weight_dtype=four_bit["weight_dtype"],
        )
    progress = ByteProgress("merge", sum(weight.written.size_bytes for ws in shards.values() for weight in ws))
    files: list[FileEntry] = []
    figures: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    with safe_open(str(adapter / ADAPTER_WEIGHTS), framework="pt") as tensors, one_torch_thread():
        for name, weights in shards.items():
            specs = {weight.name: weight.written for weight in weights}
            with safe_open(str(base / name), framework="pt") as shard, ShardWriter(output / name, specs) as out:
                held = partial(_held, shard, four_bit, round_tripped)
                jobs = (job for weight in weights for job in _jobs(weight, held, tensors, changes))
                for block in in_order(jobs, workers=worker_count()):
                    out.write(block.rows)
                    progress.advance(block.rows.numel() * block.rows.element_size())
                    figures[block.tensor].append(block.figures)
            files.append(out.entry)
    write_index(output, {name: {weight.name: weight.written for weight in ws} for name, ws in shards.items()})
    weights = [weight for ws in shards.values() for weight in ws if weight.name in changes.tensors]
    modules = [_module(weight, changes.pairs.get(weight.name), figures[weight.name]) for weight in weights]
    _refuse_empty_merge(modules, changes)
    return Merged(modules, files)


def refuse_other_dtypes(adapter: Path, changes: Changes, base: Mapping[str, TensorSpec]) -> None:
    """Refuses to change what is not stored in 16 or 32 bits: float64 would be rounded, 8 bits lack their scales.

    Raises:
        AdapterError: naming each such tensor.
    """
    held = {name: base[name if name in base else changes.untied[name]].dtype for name in changes.tensors}
    if wrong := [f"{name}: {held[name]}" for name in sorted(held) if held[name] not in FLOAT_DTYPES]:
        raise AdapterError(
            f"The adapter in {adapter} changes weights of a dtype that the merge cannot compute.",
            seen=f"{len(wrong)} of {len(held)} tensors of another dtype in the base",
            expected=" or ".join(FLOAT_DTYPES),
            remedy="load the base in float32 or bfloat16 and save it anew; for one in 8 bits, give the original it was "
            "made from",
            items=wrong,
        )


def _written(stored: Mapping[str, Mapping[str, TensorSpec]], changes: Changes, dtype: str) -> dict[str, list[_Weight]]:
    """Shard → what is written into it, in order: the base's tensors, and after it the twin of one that was tied."""
    held = {tensor for specs in stored.values() for tensor in specs}
    twins = {source: name for name, source in changes.untied.items() if name not in held}
    shards: dict[str, list[_Weight]] = {}
    for shard, specs in stored.items():
        names = [(name, tensor) for tensor in specs for name in (tensor, twins.get(tensor)) if name]
        shards[shard] = [
            _Weight(name, tensor, specs[tensor], cast_spec(specs[tensor], dtype)) for name, tensor in names
        ]
    return shards


def _held(shard: Any, four_bit: Mapping[str, Any] | None, round_tripped: Collection[str], weight: _Weight) -> Any:
    """Something that gives the base's rows by slice: the file itself, or the round-tripped weight."""
    source = weight.source
    rows = shard.get_slice(source) if weight.held.shape else shard.get_tensor(source).reshape(1)
    if four_bit is None or source not in round_tripped:
        return rows
    return round_trip(
        rows,
        shape=weight.held.shape,
        quant_type=four_bit["quant_type"],
        block_size=four_bit["block_size"],
        double_quant=four_bit["double_quant"],
        weight_dtype=four_bit["weight_dtype"],
    )


def _jobs(
    weight: _Weight, held: Callable[[_Weight], Any], tensors: Any, changes: Changes
) -> Iterator[Callable[[], Block]]:
    """What computes the blocks of a tensor, in their order."""
    source, cast_to = held(weight), torch_dtype(weight.written.dtype)
    if weight.name in changes.copies:
        source = _checked_copy(weight, source, tensors.get_slice(changes.copies[weight.name]))
    change = _change(weight, source, tensors, changes)
    for rows in weight.blocks():
        if change is None:
            yield partial(copied_block, weight.name, source, rows, cast_to)
        else:
            yield partial(merged_block, weight.name, source, change, rows, cast_to)


def _change(weight: _Weight, source: Any, tensors: Any, changes: Changes) -> Change | None:
    import torch

    if pair := changes.pairs.get(weight.name):
        return read_update(tensors, pair, weight.blocks(), lambda rows: source[rows].to(torch.float32))
    if key := changes.replaced.get(weight.name):
        return Replacement(tensors.get_slice(key))
    if weight.name in changes.shifted:
        key, scaling = changes.shifted[weight.name]
        return Shift(tensors.get_slice(key), scaling)
    return None


def _module(weight: _Weight, pair: LoraPair | None, figures: Sequence[tuple[int, float, float]]) -> MergedModule:
    changed = sum(counted for counted, _, _ in figures)
    base, change = sum(figure[1] for figure in figures), sum(figure[2] for figure in figures)
    relative = (change / base) ** 0.5 if base else float(change > 0)
    return MergedModule(weight.name, pair.rank if pair else None, changed, weight.held.elements, round(relative, 9))


def _checked_copy(weight: _Weight, held: Any, copy: Any) -> Any:
    """The adapter's copy, which PEFT computes with: the base's values in the precision of the training."""
    for rows in weight.blocks():
        copied = copy[rows]
        if not bool((copied == held[rows].to(copied.dtype)).all()):
            raise AdapterError(
                f"The adapter was trained on another {weight.source}.",
                seen=f"its own copy differs from the base's in rows {rows.start} to {rows.stop}",
                expected="the base's values: PEFT saves embeddings with the adapter",
                remedy="use the base that the adapter was trained on; if tokens were added, save that base first",
            )
    return copy


def _refuse_missing_round_trips(missing: set[str]) -> None:
    if missing:
        raise AdapterError(
            "The adapter was trained on 4-bit modules that this base does not have.",
            seen=f"{len(missing)} modules without a weight in the base",
            expected="every module of training.json's four_bit.modules",
            remedy="use the base that the adapter was trained on",
            items=sorted(missing),
        )


def _refuse_empty_merge(modules: Sequence[MergedModule], changes: Changes) -> None:
    unused = sorted(changes.tensors - {module.weight for module in modules})
    if unused or not any(module.changed for module in modules):
        raise AdapterError(
            "The merge changed nothing." if not unused else "Tensors of the adapter were left unused by the merge.",
            seen=f"{len(unused)} unused, {sum(module.changed for module in modules)} changed weights",
            expected="every tensor of the adapter used, and weights that differ from the base after the cast",
            remedy="train the adapter: an untrained one has B = 0; or raise dtype if its update is below its precision",
            items=unused,
        )
