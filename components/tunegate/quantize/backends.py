"""The backends: each a function that quantizes a model folder into another one, and the format that it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.schemes import AUTO_GPTQ, AUTOAWQ, LLMCOMPRESSOR
from tunegate.quantize import auto_gptq_backend, autoawq_backend, llmcompressor_backend
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.stored import AWQ_PACKED, COMPRESSED_TENSORS, GPTQ_PACKED, Format
from tunegate.quantize.work import Work


@dataclass(frozen=True)
class Backend:
    """Something that quantizes.

    Attributes:
        check: refuses what it cannot do for a model folder's layers, before anything is loaded.
        quantize: does the work; it loads its libraries when it is called.
        format: how the quantized weights lie in the files.
    """

    check: Callable[[QuantizeSettings, Path, Sequence[str]], None]
    quantize: Callable[[Work], None]
    format: Format


BACKENDS: Mapping[str, Backend] = {
    LLMCOMPRESSOR: Backend(llmcompressor_backend.check, llmcompressor_backend.quantize, COMPRESSED_TENSORS),
    AUTOAWQ: Backend(autoawq_backend.check, autoawq_backend.quantize, AWQ_PACKED),
    AUTO_GPTQ: Backend(auto_gptq_backend.check, auto_gptq_backend.quantize, GPTQ_PACKED),
}
