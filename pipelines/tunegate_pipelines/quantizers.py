"""Which image quantize runs in: that of the recipe's backend, chosen by the pipeline's first task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.images import QUANTIZERS
from tunegate.contracts.schemes import LLMCOMPRESSOR
from tunegate_pipelines.platform_settings import platform_now


def _chosen_in_the_run() -> bool:
    """Whether an image may be a parameter: KFP's driver fills it in. Of Vertex nothing says so."""
    platform = platform_now()
    return platform is None or platform.kubernetes


def quantizers() -> dict[str, str]:
    """Backend → the image that holds it, of those that quantize can run in on the platform that is compiled for."""
    return dict(QUANTIZERS) if _chosen_in_the_run() else {LLMCOMPRESSOR: QUANTIZERS[LLMCOMPRESSOR]}


def in_image(task: Any, image: Any) -> Any:
    """The task of quantize, in the image that the first task chose."""
    return task.set_container_image(image) if _chosen_in_the_run() else task


def image_of(backend: str, given: Mapping[str, str]) -> str:
    """The image of a backend among those that were compiled in.

    Raises:
        SettingsError: when there is none.
    """
    if backend in given:
        return given[backend]
    raise SettingsError(
        f"This pipeline has no image for the backend {backend}.",
        seen=f"quantize.backend {backend}",
        expected=f"one of {', '.join(given)}",
        remedy="use backend llmcompressor, or a pipeline that is compiled for KFP: Vertex gives a step one image",
    )
