"""What a backend is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.schemes import AWQ
from tunegate.quantize.calibration import Calibration
from tunegate.quantize.settings import QuantizeSettings

STEP = "quantize"


@dataclass(frozen=True)
class Work:
    """One model to quantize.

    Attributes:
        settings: scheme, algorithm, what to ignore.
        source: the model folder, 16-bit or 32-bit weights.
        folder: where the weights and a ``config.json`` with its ``quantization_config`` go.
        layers: the names of the linear layers that are quantized.
        group_size: weights that share a scale; 0 for a scheme without groups.
        calibration: the rows; None where none are needed.
    """

    settings: QuantizeSettings
    source: Path
    folder: Path
    layers: tuple[str, ...]
    group_size: int
    calibration: Calibration | None

    @property
    def rescales(self) -> bool:
        """Whether scale moves between a layer's inputs and what comes before it, so that vectors change too."""
        return self.settings.made_by == AWQ
