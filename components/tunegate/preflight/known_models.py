"""Shapes of models that can be planned by name: the numbers of their ``config.json``, and not a weight."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

#: Name → what people call it. Meta's Llama 3 and 3.1 (arXiv:2407.21783, table 3), and the demo's model
#: (HuggingFaceTB/SmolLM2-135M-Instruct, config.json).
KNOWN_MODELS = {
    "llama-3-8b": "Llama 3 8B",
    "llama-3-70b": "Llama 3 70B",
    "llama-3.1-405b": "Llama 3.1 405B",
    "smollm2-135m": "SmolLM2 135M",
}


def known_config(name: str) -> dict[str, Any]:
    """The shapes of a known model, as its ``config.json`` has them.

    Args:
        name: one of ``KNOWN_MODELS``.
    """
    path = resources.files("tunegate.preflight") / "shapes" / f"{name}.json"
    return dict(json.loads(path.read_text("utf-8")))
