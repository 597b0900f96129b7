"""The adapter on disk: PEFT's format, the same bytes for the same weights, with the tokenizer it was trained with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from tunegate.contracts.files import pretty_json
from tunegate.models.companions import copy_files
from tunegate.models.files import tokenizer_files


def save_adapter(model: Any, folder: Path, *, base_model: Path, base_digest: str) -> None:
    """Writes ``adapter_model.safetensors``, ``adapter_config.json`` and the base's tokenizer files.

    PEFT's configuration names the base by its path and lists target modules in the order of a set: both would make
    equal adapters differ, so the base is named by its digest and lists are sorted. The model card is left out.
    """
    with warnings.catch_warnings():
        if model.active_peft_config.peft_type == "ADALORA":  # a module without a rank is no shard that was not gathered
            warnings.filterwarnings("ignore", message=r".*LoRA tensor\(s\) have invalid shape")
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = f"sha256:{base_digest}"
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_bytes(pretty_json(dict(sorted(config.items()))))
    copy_files(tokenizer_files(base_model), folder)
