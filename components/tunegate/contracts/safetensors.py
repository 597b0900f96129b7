"""The header of a safetensors file: what it holds, without loading it (https://github.com/huggingface/safetensors)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor → its ``dtype``, ``shape`` and ``data_offsets``, in the order of the file.

    Raises:
        ValueError: when the header is damaged, or the file is shorter or longer than it says; callers say what the file
            should have been.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]))
        expected = 8 + length + max((entry["data_offsets"][1] for entry in ordered.values()), default=0)
        if not all(isinstance(entry["dtype"], str) and _is_shape(entry["shape"]) for entry in ordered.values()):
            raise ValueError("a tensor without dtype and shape")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if size != expected:
        raise ValueError(f"{size} bytes where the header needs {expected}")
    return ordered


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(length, int) for length in value)
