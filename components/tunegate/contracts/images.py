"""Which container image each step runs in: the one table that components, compilation and the image builds read."""

from __future__ import annotations

from collections.abc import Mapping

#: The tag every image of this version carries.
TAG = "0.1.0"

CONTROL = f"tunegate/control:{TAG}"
TRAIN = f"tunegate/train:{TAG}"
QUANTIZE = f"tunegate/quantize:{TAG}"
EVALUATE = f"tunegate/evaluate:{TAG}"

#: Step → image. The judging and publishing steps run in ``control``, which holds no torch.
IMAGES: Mapping[str, str] = {
    "check": CONTROL,
    "prepare": TRAIN,
    "train": TRAIN,
    "merge": TRAIN,
    "quantize": QUANTIZE,
    "parity": EVALUATE,
    "evaluate": EVALUATE,
    "serve_check": EVALUATE,  # which holds the serving environment beside its own
    "gate": CONTROL,
    "request_approval": CONTROL,
    "await_approval": CONTROL,
    "not_approved": CONTROL,
    "decide": CONTROL,
    "promote": CONTROL,
    "refused": CONTROL,
    "summarize": CONTROL,
}
