"""What crosses the border between the two environments: a job as JSON. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One model to quantize.

    Attributes:
        backend: ``autoawq`` or ``auto_gptq``.
        source: the model folder, 16-bit or 32-bit safetensors.
        folder: where ``model*.safetensors`` and ``config.json`` go.
        layers: the names of the linear layers that are quantized.
        group_size: inputs that share a scale.
        rows: the calibration rows' token ids.
        dampening_frac: for GPTQ.
        seed: of every random generator.
    """

    backend: str
    source: str
    folder: str
    layers: tuple[str, ...]
    group_size: int
    rows: tuple[tuple[int, ...], ...]
    dampening_frac: float
    seed: int

    def write(self, path: Path) -> None:
        """Writes the job for :func:`read_job`."""
        path.write_text(json.dumps(dataclasses.asdict(self)), "utf-8")


def read_job(path: Path) -> Job:
    """The job that was written to ``path``."""
    fields = json.loads(path.read_text("utf-8"))
    rows = tuple(tuple(row) for row in fields.pop("rows"))
    return Job(layers=tuple(fields.pop("layers")), rows=rows, **fields)
