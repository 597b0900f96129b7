"""What decides how text becomes tokens and where an answer ends: copied byte for byte, compared by digest.

A library that saves a tokenizer writes its files anew, and a template or an eos that changed on the way shows itself
only in what the served model answers. Every step copies the files of the step before it, says their digests in its
document, and holds what it is given against what that step said.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from tunegate.contracts.errors import ModelError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.models.files import GENERATION_FILES, TOKENIZER_FILES, tokenizer_files

#: Where a step's document keeps the digests: file name → sha256.
COMPANIONS = "companions"

#: All that is carried along. ``config.json`` is not: a merge may change its dtype, and quantization adds to it.
COMPANION_FILES = (*TOKENIZER_FILES, *GENERATION_FILES)


def companion_files(folder: Path) -> list[Path]:
    """The tokenizer's files, chat template included, and the generation settings, as far as a folder has them."""
    return [*tokenizer_files(folder), *(folder / name for name in GENERATION_FILES if (folder / name).is_file())]


def companion_digests(folder: Path) -> dict[str, str]:
    """File name → sha256 of everything that a folder's companions are."""
    return {path.name: sha256_file(path) for path in companion_files(folder)}


def tokenizer_digests(folder: Path) -> dict[str, str]:
    """File name → sha256 of the tokenizer's files alone: an adapter has no generation settings."""
    return {path.name: sha256_file(path) for path in tokenizer_files(folder)}


def copy_files(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """Copies files into a folder, over what lies there.

    Returns:
        file name → sha256 of what was copied.

    Raises:
        RunError: when a copy differs from its source.
    """
    copied = {}
    for path in files:
        shutil.copyfile(path, folder / path.name)
        copied[path.name] = sha256_file(folder / path.name)
        if copied[path.name] != sha256_file(path):
            raise RunError(
                f"{path.name} changed while it was copied.",
                seen=f"sha256 {copied[path.name][:12]}",
                expected=f"a copy of {path}, byte for byte",
                remedy="check the disk, and that nothing writes to the model's folder; then run again",
            )
    return copied


def companion_differences(found: Mapping[str, str], stated: Mapping[str, str]) -> list[str]:
    """What differs between two sets of digests, one line a file."""
    lines = []
    for name in sorted(found.keys() | stated.keys()):
        if name not in found:
            lines.append(f"{name}: missing")
        elif name not in stated:
            lines.append(f"{name}: added")
        elif found[name] != stated[name]:
            lines.append(f"{name}: sha256 {found[name][:12]}, was {stated[name][:12]}")
    return lines


def refuse_other_companions(
    folder: Path, found: Mapping[str, str], stated: Mapping[str, str] | None, *, stated_by: str
) -> None:
    """Refuses a folder whose tokenizer, template or generation settings are not those of the step before.

    Args:
        folder: whose files they are.
        found: their digests.
        stated: what the step before said; None where it said nothing: then there is nothing to compare with.
        stated_by: its document, for the message.

    Raises:
        ModelError: naming each file that differs.
    """
    if stated is None:
        return
    if differs := companion_differences(found, stated):
        raise ModelError(
            f"The tokenizer, template or generation settings in {folder} are not those that {stated_by} names.",
            seen=f"{len(differs)} file(s) differ",
            expected="the same bytes from the base to the served model: otherwise it is asked, and ends, another way",
            remedy="put the original files back, or begin again from the base that shall be used",
            items=differs,
        )
