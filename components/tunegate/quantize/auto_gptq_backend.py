"""AutoGPTQ as the backend: symmetric GPTQ, in AutoGPTQ's own format. It needs a GPU, which its worker looks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunegate.contracts.schemes import AUTO_GPTQ
from tunegate.quantize.legacy.environment import DISTRIBUTIONS, find_python
from tunegate.quantize.legacy.layers import check_all_inner_layers
from tunegate.quantize.legacy.process import run_worker
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.work import Work


def check(settings: QuantizeSettings, source: Path, layers: Sequence[str]) -> None:
    """Refuses what AutoGPTQ cannot do, before anything is loaded.

    Raises:
        SettingsError: when its environment is absent, or a layer is left out that it would quantize.
    """
    find_python(DISTRIBUTIONS[AUTO_GPTQ], given=settings.legacy_python)
    check_all_inner_layers(settings.backend, source, layers)


def quantize(work: Work) -> None:
    """Quantizes in AutoGPTQ's environment."""
    run_worker(work, find_python(DISTRIBUTIONS[AUTO_GPTQ], given=work.settings.legacy_python))
