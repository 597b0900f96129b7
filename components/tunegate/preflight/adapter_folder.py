"""An adapter folder and its base as far as their configurations and file headers tell: no weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError, ModelError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.manifest import input_digest
from tunegate.contracts.safetensors import read_header
from tunegate.contracts.tokenizer import TOKENIZER_NAME, token_ids
from tunegate.preflight.model_shape import ModelShape, model_shape

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

#: What vLLM unpickles where there is no safetensors file, in this order (vllm/lora/lora_model.py).
PICKLED_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")

_PREFIX = "base_model.model."
_DIGEST = "sha256:"

Shape = tuple[int, ...]


class CannotTell(Exception):
    """What a rule needs is not at hand; its text says why."""


@dataclass(frozen=True)
class Factor:
    """A tensor whose name vLLM understands.

    Attributes:
        module: its name in the base; ``score`` or ``classifier`` of a whole head.
        kind: A or B, ``embedding_A`` or ``embedding_B``, or ``head``.
    """

    module: str
    kind: str


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        folder: where it lies.
        config: its ``config.json``.
        shapes: every tensor's shape.
    """

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]

    @property
    def shape(self) -> ModelShape:
        """Its widths, and the names of its linear modules.

        Raises:
            CannotTell: for an architecture whose modules are not known here.
        """
        try:
            return model_shape(self.config)
        except ModelError as error:
            raise CannotTell(f"the modules of this base are not known: {error.seen}") from error

    @property
    def modules(self) -> frozenset[str]:
        """Every module that has a tensor; a tied output head has none of its own."""
        head = {"lm_head"} if self.shape.tied else set()
        return frozenset(name.rpartition(".")[0] for name in self.shapes) | head

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id.

        Raises:
            CannotTell: when it has no tokenizer that can be read.
        """
        return _token_ids(self.folder, "the base")

    @property
    def digest(self) -> str:
        """The content digest of its files, each of which is read."""
        return input_digest(self.folder)


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter folder holds.

    Attributes:
        folder: where it lies.
        max_lora_rank: the largest rank for which the server has room.
        config_or_why: ``adapter_config.json``, or why it cannot be read.
        shapes_or_why: the weights' shapes in the order of their file, or why they cannot be read.
        base_or_none: the base, where one was given.
    """

    folder: Path
    max_lora_rank: int
    config_or_why: Mapping[str, Any] | str
    shapes_or_why: Mapping[str, Shape] | str
    base_or_none: Base | None

    @property
    def config(self) -> Mapping[str, Any]:
        """``adapter_config.json``, or :class:`CannotTell`."""
        return _at_hand(self.config_or_why)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Tensor → shape, or :class:`CannotTell`."""
        return _at_hand(self.shapes_or_why)

    @property
    def base(self) -> Base:
        """The base, or :class:`CannotTell`."""
        if self.base_or_none is None:
            raise CannotTell("no base was given")
        return self.base_or_none

    @property
    def factors(self) -> dict[str, Factor]:
        """Tensor → what vLLM takes it for; those whose names it does not understand are left out."""
        found = {name: parse_factor(name) for name in self.shapes}
        return {name: factor for name, factor in found.items() if factor is not None}

    @property
    def vocabulary(self) -> Mapping[str, int] | None:
        """Token → id of the adapter's own tokenizer, where it has one."""
        return _token_ids(self.folder, "the adapter") if (self.folder / TOKENIZER_NAME).is_file() else None

    @property
    def base_digest(self) -> str:
        """The digest of the base that it was trained on.

        Raises:
            CannotTell: when nobody wrote it down.
        """
        named = str(self.config.get("base_model_name_or_path") or "")
        if not named.startswith(_DIGEST):
            raise CannotTell(f"the adapter names its base {named!r}, and no digest of it")
        return named.removeprefix(_DIGEST)


def read_adapter_folder(folder: Path, *, base: Path | None, max_lora_rank: int) -> AdapterFolder:
    """Reads configurations and headers.

    Raises:
        AdapterError: when there is no such folder.
        ModelError: when the base cannot be read.
    """
    if not folder.is_dir():
        raise AdapterError(
            f"There is no adapter folder {folder}.",
            seen="no such folder",
            expected=f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}",
            remedy="check the adapter's path",
        )
    return AdapterFolder(
        folder, max_lora_rank, _config(folder), _shapes(folder), None if base is None else _read_base(base)
    )


def _config(folder: Path) -> Mapping[str, Any] | str:
    if not (folder / CONFIG_NAME).is_file():
        return f"no {CONFIG_NAME} in {folder}"
    try:
        return read_json_object(folder / CONFIG_NAME)
    except ValueError as error:
        return f"{CONFIG_NAME} cannot be read: {error}"


def _shapes(folder: Path) -> Mapping[str, Shape] | str:
    if (folder / WEIGHTS_NAME).is_file():
        try:
            return {name: tuple(entry["shape"]) for name, entry in read_header(folder / WEIGHTS_NAME).items()}
        except ValueError as error:
            return f"{WEIGHTS_NAME} is damaged: {error}"
    pickled = [name for name in PICKLED_WEIGHTS if (folder / name).is_file()]
    if pickled:
        return f"{pickled[0]} is a pickle, which is not opened here"
    return f"{folder} doesn't contain tensors"


def _read_base(folder: Path) -> Base:
    try:
        config = read_json_object(folder / "config.json")
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError("no *.safetensors")
        shapes = {name: tuple(entry["shape"]) for shard in shards for name, entry in read_header(shard).items()}
    except ValueError as error:
        raise ModelError(
            f"The base in {folder} cannot be read.",
            seen=str(error),
            expected="a model folder with config.json and *.safetensors",
            remedy="give the folder of the base that the adapter was trained on",
        ) from error
    return Base(folder, config, shapes)


def _at_hand(found: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(found, str):
        raise CannotTell(found)
    return found


def _token_ids(folder: Path, whose: str) -> Mapping[str, int]:
    try:
        return token_ids(folder / TOKENIZER_NAME)
    except ValueError as error:
        raise CannotTell(f"{TOKENIZER_NAME} of {whose} cannot be read: {error}") from error


def parse_factor(tensor: str) -> Factor | None:
    """What vLLM takes a tensor for; None for a name that it refuses (``parse_fine_tuned_lora_name``)."""
    parts = tensor.removeprefix(_PREFIX).split(".")
    if len(parts) >= 2 and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
        return Factor(".".join(parts[:-2]), parts[-2][-1])
    if len(parts) >= 2 and parts[-1] in ("weight", "bias") and parts[-2] in ("score", "classifier"):
        return Factor(parts[-2], "head")
    if parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
        return Factor(".".join(parts[:-1]), parts[-1].removeprefix("lora_"))
    return None


def pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name, by the rule that PEFT and vLLM share."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
