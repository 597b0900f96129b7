"""Which container image each step runs in: the one table that components, compilation and the image builds read."""

from __future__ import annotations

from collections.abc import Mapping

from tunegate.contracts.schemes import AUTO_GPTQ, AUTOAWQ, LLMCOMPRESSOR

#: The tag every image of this version carries.
TAG = "0.1.0"

CONTROL = f"tunegate/control:{TAG}"
TRAIN = f"tunegate/train:{TAG}"
QUANTIZE = f"tunegate/quantize:{TAG}"
QUANTIZE_LEGACY = f"tunegate/quantize_legacy:{TAG}"
EVALUATE = f"tunegate/evaluate:{TAG}"
SERVE = f"tunegate/serve:{TAG}"

#: Step → image. The judging and publishing steps run in ``control``, which holds no torch.
IMAGES: Mapping[str, str] = {
    "check": CONTROL,
    "prepare": TRAIN,
    "train": TRAIN,
    "merge": TRAIN,
    "quantize": QUANTIZE,  # by the backend of a run: QUANTIZERS
    "parity": EVALUATE,
    "evaluate": EVALUATE,
    "serve_check": SERVE,  # what evaluates, and vLLM beside it
    "gate": CONTROL,
    "request_approval": CONTROL,
    "await_approval": CONTROL,
    "not_approved": CONTROL,
    "decide": CONTROL,
    "promote": CONTROL,
    "deploy": CONTROL,
    "refused": CONTROL,
    "summarize": CONTROL,
    "begin_retrain": CONTROL,
    "skipped": CONTROL,
    "end_retrain": CONTROL,
}

#: Backend of quantize → image: the old projects' libraries are gigabytes that nobody else should have to pull.
QUANTIZERS: Mapping[str, str] = {LLMCOMPRESSOR: QUANTIZE, AUTOAWQ: QUANTIZE_LEGACY, AUTO_GPTQ: QUANTIZE_LEGACY}

#: Every image there is.
ALL_IMAGES = tuple(sorted({*IMAGES.values(), *QUANTIZERS.values()}))


def image_name(reference: str) -> str:
    """An image without its tag."""
    return reference.rpartition(":")[0]
