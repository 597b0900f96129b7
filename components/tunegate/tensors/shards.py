"""Safetensors shards read tensor by tensor and written as a stream.

The library's own ``save_file`` wants a whole shard in memory. The format is simple enough to stream: eight bytes of
header length, a JSON header, then the tensors' bytes in its order (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.contracts.files import checked_relative_path, pretty_json, read_json_object
from tunegate.contracts.manifest import FileEntry
from tunegate.contracts.safetensors import read_header

#: The safetensors names of the torch dtypes, with their bytes per element.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
#: The floating-point dtypes that weights are stored in, with torch's names.
FLOAT_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

#: The float32 size of a row block: what bounds the memory of whatever streams a model's weights. A block this small
#: stays in a core's cache, and its memory is used again instead of being asked for anew: ten times as fast as 64 MiB.
BLOCK_BYTES = 2 << 20

_HEADER_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's safetensors dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * DTYPES[self.dtype]


def cast_spec(spec: TensorSpec, dtype: str) -> TensorSpec:
    """A tensor cast to ``dtype`` (torch's name, or ``auto`` for its own); what is no weight keeps its dtype."""
    if dtype == "auto" or spec.dtype not in FLOAT_DTYPES:
        return spec
    return TensorSpec(next(name for name, torch_name in FLOAT_DTYPES.items() if torch_name == dtype), spec.shape)


def torch_dtype(dtype: str) -> Any:
    """The torch dtype of one of :data:`FLOAT_DTYPES`; None for the others, which are copied as they are."""
    import torch

    return getattr(torch, FLOAT_DTYPES[dtype]) if dtype in FLOAT_DTYPES else None


def read_specs(shard: Path) -> dict[str, TensorSpec]:
    """What a shard holds, from its header alone, in the order of the file.

    Raises:
        ModelError: when the header is damaged or the file is shorter or longer than it says.
    """
    try:
        header = read_header(shard)
    except ValueError as error:
        raise _damaged(shard, str(error)) from error
    specs = {name: TensorSpec(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    if unknown := {spec.dtype for spec in specs.values()} - DTYPES.keys():
        raise _damaged(shard, f"unknown dtypes {', '.join(sorted(unknown))}")
    return specs


def _damaged(shard: Path, seen: str) -> ModelError:
    return ModelError(
        f"{shard} is not a whole safetensors file.",
        seen=seen,
        expected="a complete shard",
        remedy="fetch the model again; the download or copy was cut short",
    )


def shard_names(model: Path) -> list[str]:
    """The weight files of a model folder, from its index when there is one.

    Raises:
        ModelError: when the index names a file that is absent, or disagrees with what the shards hold.
    """
    index = model / INDEX_NAME
    if not index.is_file():
        names = sorted(path.name for path in model.glob("*.safetensors"))
        if names != [SINGLE_NAME]:
            raise ModelError(
                f"{model} has weight files that no index names.",
                seen=", ".join(names),
                expected=f"{SINGLE_NAME}, or several shards with {INDEX_NAME}",
                remedy="add the index, or remove the files that do not belong to the model",
            )
        return names
    weight_map = _weight_map(index)
    names = sorted({str(checked_relative_path(name)) for name in weight_map.values()})
    held = {tensor: name for name in names if (model / name).is_file() for tensor in read_specs(model / name)}
    wrong = sorted(tensor for tensor in weight_map.keys() | held.keys() if weight_map.get(tensor) != held.get(tensor))
    if wrong:
        raise ModelError(
            f"{index} does not match the shards.",
            seen=f"{len(wrong)} tensor(s) are not where the index says",
            expected="an index that names exactly the tensors of the shards",
            remedy="fetch the model again",
            items=[f"{t}: index {weight_map.get(t)}, found in {held.get(t)}" for t in wrong],
        )
    return names


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json_object(index)["weight_map"]
        return {str(tensor): str(name) for tensor, name in weight_map.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{index} cannot be read.",
            seen=f"{type(error).__name__}: {error}",
            expected="a JSON object with a 'weight_map' from tensor to shard",
            remedy="fetch the model again",
        ) from error


def model_specs(model: Path) -> dict[str, TensorSpec]:
    """Every tensor of a model folder, from the shards' headers alone."""
    return {name: spec for shard in shard_names(model) for name, spec in read_specs(model / shard).items()}


def stored_tensors(model: Path) -> dict[str, tuple[Path, TensorSpec]]:
    """Every tensor of a model folder with the shard that it lies in, from the shards' headers alone."""
    shards = [model / name for name in shard_names(model)]
    return {name: (shard, spec) for shard in shards for name, spec in read_specs(shard).items()}


class ShardWriter:
    """Writes one shard as a stream of row blocks, and hashes it on the way.

    Args:
        path: the file.
        specs: every tensor that will be written, in the order in which it will come.

    Raises:
        ValueError: on leaving, when other bytes were written than ``specs`` says.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, spec in specs.items():
            end = offset + spec.size_bytes
            header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _HEADER_ALIGNMENT_BYTES)
        self._path, self._expected_bytes, self._written_bytes = path, 8 + len(encoded) + offset, 0
        self._sha256 = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self._write(memoryview(len(encoded).to_bytes(8, "little") + encoded))

    def write(self, block: Any) -> None:
        """Appends a torch tensor's bytes: a whole tensor, or the next rows of one."""
        import torch

        flat = block.detach().contiguous().reshape(-1).view(torch.uint8)
        self._write(memoryview(flat.numpy()))

    def _write(self, data: memoryview) -> None:
        self._sha256.update(data)
        while data:  # a write may take a part: on a full disk, the last part that fits
            written = self._file.write(data)
            self._written_bytes += written
            data = data[written:]

    @property
    def entry(self) -> FileEntry:
        """The file as a manifest names it, from the bytes as they were written."""
        return FileEntry(self._path.name, self._written_bytes, self._sha256.hexdigest())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._written_bytes != self._expected_bytes:
            raise ValueError(f"{self._path}: {self._written_bytes} bytes written, {self._expected_bytes} announced")


def write_index(folder: Path, shards: Mapping[str, Mapping[str, TensorSpec]]) -> None:
    """Writes ``model.safetensors.index.json`` when there is more than one shard.

    Args:
        folder: the model folder.
        shards: file name → its tensors.
    """
    if len(shards) == 1 and SINGLE_NAME in shards:
        return
    total = sum(spec.size_bytes for specs in shards.values() for spec in specs.values())
    weight_map = {tensor: name for name, specs in shards.items() for tensor in specs}
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_bytes(pretty_json(document))


def row_blocks(rows: int, row_bytes: int, limit_bytes: int) -> Iterator[slice]:
    """Slices over ``rows`` such that each block takes at most ``limit_bytes``, and at least one row."""
    step = max(1, limit_bytes // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
