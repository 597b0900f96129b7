"""Model folders: where they come from, and what must lie in them before anything loads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError

#: What identifies how text becomes tokens and answers end; carried byte for byte through every stage.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION_FILES = ("generation_config.json",)

#: ``org/name@revision``.
HUB_NAME = re.compile(r"^\w[\w.-]*/\w[\w.-]*@[\w./-]+$")
_SAFE_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def resolve_model(text: str) -> Path:
    """A folder with the model that ``text`` names.

    Args:
        text: a local folder, or ``org/name@revision`` of a hub; only safetensors, JSON and tokenizer files are fetched.

    Raises:
        ModelError: when it is neither, or the folder cannot be used.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir():
        folder = _from_hub(text)
    check_model_folder(folder)
    return folder


def _from_hub(text: str) -> Path:
    if text.startswith("gs://"):
        raise ModelError(
            f"The base model {text!r} is not read from a bucket.",
            seen="an address on Google Cloud Storage",
            expected="a folder, or 'org/name@revision'",
            remedy=f"copy it, `gcloud storage cp --recursive {text} FOLDER`, and give FOLDER; or mount the bucket",
        )
    if not HUB_NAME.match(text):
        raise ModelError(
            f"The base model {text!r} was not found.",
            seen="no such folder, and no hub name with a revision",
            expected="a folder, or 'org/name@revision' (a commit, so that a rerun uses the same bytes)",
            remedy="check the path, or add '@' and the commit to the hub name",
        )
    import huggingface_hub

    name, _, revision = text.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_SAFE_PATTERNS))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ModelError(
            f"The base model {text!r} could not be fetched.",
            seen=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            expected="a model that this machine can reach",
            remedy="check name, revision and access, or copy the model to a folder and give its path",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        ModelError: when it is absent or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a model folder.",
            seen=f"config.json: {error}",
            expected="a folder in the Hugging Face format, with config.json and *.safetensors",
            remedy="check the path of the model",
        ) from error
    return config


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Refuses a folder that cannot be loaded safely; returns its config.

    Raises:
        ModelError: without config.json or safetensors weights, or when the config asks for remote code.
    """
    config = read_config(folder)
    if "auto_map" in config:
        raise ModelError(
            f"{folder} needs code of its own to load.",
            seen="config.json has 'auto_map'",
            expected="an architecture that transformers knows; tunegate runs no remote code",
            remedy="use a model whose architecture is part of transformers",
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        raise ModelError(
            f"{folder} has no safetensors weights.",
            seen=", ".join(pickles) or "no weights at all",
            expected="*.safetensors; pickled weights can run code and are never loaded",
            remedy="convert the model once: load it yourself and call save_pretrained(safe_serialization=True)",
        )
    return config


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files (chat template included) that are present."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
