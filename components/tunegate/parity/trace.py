"""What one model said of the probe rows, kept on disk: the models are too large to be asked side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.likelihood import Scored, decoder_layers, score
from tunegate.models.probe import ProbeRow
from tunegate.models.quiet import quiet


@dataclass(frozen=True)
class Trace:
    """The rows of one model as they were scored, read one by one.

    Attributes:
        folder: two arrays a row.
        rows: what was asked.
        layers: the names of its decoder layers.
    """

    folder: Path
    rows: Sequence[ProbeRow]
    layers: tuple[str, ...]

    def __iter__(self) -> Iterator[Scored]:
        import numpy as np

        for place, row in enumerate(self.rows):
            log_probs, layers = (
                np.load(self.folder / f"{place}.{part}.npy", allow_pickle=False) for part in ("log_probs", "layers")
            )
            yield Scored(row, log_probs, layers)


def record(
    load: Callable[[], Any], rows: Sequence[ProbeRow], folders: Sequence[tuple[Path, int]], progress: Progress
) -> list[Trace]:
    """Loads a model, keeps what it says of every row, and lets go of it.

    Args:
        load: gives the model.
        rows: what to ask.
        folders: where to keep it, and how many rows to compute together; one trace each.
        progress: counts the rows.
    """
    import numpy as np

    with quiet("transformers"):
        model = load().eval()
        layers = tuple(decoder_layers(model))
        for folder, batch_size in folders:
            folder.mkdir()
            for place, scored in enumerate(score(model, rows, batch_size=batch_size, with_layers=True)):
                np.save(folder / f"{place}.log_probs.npy", scored.log_probs)
                np.save(folder / f"{place}.layers.npy", scored.layers)
                progress.advance()
    return [Trace(folder, rows, layers) for folder, _ in folders]
