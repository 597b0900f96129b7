"""The backends: each a function that quantizes a model folder into another one, and the format that it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunegate.contracts.schemes import LLMCOMPRESSOR
from tunegate.quantize import llmcompressor_backend
from tunegate.quantize.stored import COMPRESSED_TENSORS, Format
from tunegate.quantize.work import Work


@dataclass(frozen=True)
class Backend:
    """Something that quantizes.

    Attributes:
        quantize: does the work; it loads its libraries when it is called.
        format: how the quantized weights lie in the files.
    """

    quantize: Callable[[Work], None]
    format: Format


BACKENDS: Mapping[str, Backend] = {
    LLMCOMPRESSOR: Backend(llmcompressor_backend.quantize, COMPRESSED_TENSORS),
}
