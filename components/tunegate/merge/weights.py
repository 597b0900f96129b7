"""The streaming merge: ``W0 + scaling·B·A`` in float32, cast once, in row blocks of bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError, ModelError
from tunegate.contracts.progress import Progress
from tunegate.tensors.lora import ADAPTER_WEIGHTS, LoraPair, delta_rows, read_factors
from tunegate.tensors.nf4 import round_trip
from tunegate.tensors.shards import (
    BLOCK_BYTES,
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
    """What the merge did to one weight.

    Attributes:
        weight: the tensor's name.
        rank: r of its pair.
        changed: elements that differ from the base they were added to, after the cast.
        elements: all elements.
        relative_change: Frobenius norm of ΔW over that of the base.
    """

    weight: str
    rank: int
    changed: int
    elements: int
    relative_change: float


def merge_shards(
    base: Path,
    adapter: Path,
    output: Path,
    pairs: Mapping[str, LoraPair],
    four_bit: Mapping[str, Any] | None,
    dtype: str,
) -> list[MergedModule]:
    """Writes the merged shards and their index.

    Args:
        base: the 16-bit base model folder.
        adapter: the adapter folder.
        output: where shards of the same names are written.
        pairs: base tensor → its LoRA pair.
        four_bit: how the base was held in 4 bits (``training.json``), for the weights to be round-tripped; None keeps
            the original weights.
        dtype: ``auto`` or the dtype of every floating-point weight written.

    Raises:
        AdapterError: when the merge changed nothing, or a pair was left unused or made values that are not finite.
        ModelError: when the base is damaged.
    """
    from safetensors import safe_open

    shards: dict[str, dict[str, TensorSpec]] = {}
    merged: list[MergedModule] = []
    names = shard_names(base)
    progress = Progress("merge", sum(len(read_specs(base / name)) for name in names), "tensors")
    round_tripped = {f"{m}.weight" for m in (four_bit or {}).get("modules", ())}
    with safe_open(str(adapter / ADAPTER_WEIGHTS), framework="pt") as lora:
        for name in names:
            sources = read_specs(base / name)
            shards[name] = {t: cast_spec(spec, dtype) for t, spec in sources.items()}
            with safe_open(str(base / name), framework="pt") as shard, ShardWriter(output / name, shards[name]) as out:
                for tensor, spec in sources.items():
                    source = _source(shard, tensor, spec, four_bit if tensor in round_tripped else None)
                    done = _write_tensor(out, source, shards[name][tensor], spec, pairs.get(tensor), lora, tensor)
                    merged += [done] if done else []
                    progress.advance()
    held = {tensor for specs in shards.values() for tensor in specs}
    _refuse_missing_round_trips(round_tripped - held)
    write_index(output, shards)
    _refuse_empty_merge(merged, pairs)
    return merged


def _source(shard: Any, tensor: str, spec: TensorSpec, four_bit: Mapping[str, Any] | None) -> Any:
    """Something that gives rows by slice: the file itself, or the round-tripped weight."""
    if four_bit is None:
        return shard.get_slice(tensor) if spec.shape else shard.get_tensor(tensor).reshape(1)
    return round_trip(
        shard.get_tensor(tensor),
        quant_type=four_bit["quant_type"],
        block_size=four_bit["block_size"],
        double_quant=four_bit["double_quant"],
        weight_dtype=four_bit["weight_dtype"],
    )


def _write_tensor(
    out: ShardWriter, source: Any, target: TensorSpec, spec: TensorSpec, pair: LoraPair | None, lora: Any, tensor: str
) -> MergedModule | None:
    import torch

    cast_to = torch_dtype(target.dtype)
    rows = spec.shape[0] if spec.shape else 1
    float32_row_bytes = 4 * spec.elements // max(rows, 1)
    a, b = read_factors(lora, pair) if pair else (None, None)
    changed, delta_squares, base_squares = 0, 0.0, 0.0
    for block in row_blocks(rows, float32_row_bytes, BLOCK_BYTES):
        before = source[block]
        if cast_to is None:
            out.write(before)
            continue
        if pair is None:
            out.write(before.to(cast_to))
            continue
        base_rows = before.to(torch.float32)
        delta = delta_rows(a, b, pair.scaling, block)
        after = (base_rows + delta).to(cast_to)
        if not bool(torch.isfinite(after).all()):
            raise _not_finite(tensor, bool(torch.isfinite(base_rows).all()), target.dtype)
        changed += int((after != base_rows.to(cast_to)).sum())
        delta_squares += float(delta.double().square().sum())
        base_squares += float(base_rows.double().square().sum())
        out.write(after)
    if pair is None:
        return None
    relative = (delta_squares / base_squares) ** 0.5 if base_squares else float(delta_squares > 0)
    return MergedModule(tensor, pair.rank, changed, spec.elements, round(relative, 9))


def _not_finite(tensor: str, base_is_finite: bool, dtype: str) -> Exception:
    fields = {
        "seen": "infinite values or values that are no number" + ("" if base_is_finite else ", in the base already"),
        "expected": f"finite values in {dtype}",
    }
    if base_is_finite:
        remedy = "the adapter diverged in training, or its update does not fit the dtype: look at its loss curve"
        return AdapterError(f"Merging {tensor} gave values that are not finite.", remedy=remedy, **fields)
    return ModelError(f"The base weight {tensor} is damaged.", remedy="fetch the base again", **fields)


def _refuse_missing_round_trips(missing: set[str]) -> None:
    if missing:
        raise AdapterError(
            "The adapter was trained on 4-bit modules that this base does not have.",
            seen=f"{len(missing)} modules without a weight in the base",
            expected="every module of training.json's four_bit.modules",
            remedy="use the base that the adapter was trained on",
            items=sorted(missing),
        )


def _refuse_empty_merge(merged: list[MergedModule], pairs: Mapping[str, LoraPair]) -> None:
    unused = sorted(pairs.keys() - {m.weight for m in merged})
    if unused or not any(m.changed for m in merged):
        raise AdapterError(
            "The merge changed nothing." if not unused else "LoRA pairs were left unused by the merge.",
            seen=f"{len(unused)} unused pairs, {sum(m.changed for m in merged)} changed weights",
            expected="every pair used, and weights that differ from the base after the cast",
            remedy="train the adapter: an untrained one has B = 0; or raise dtype if its update is below its precision",
            items=unused,
        )
