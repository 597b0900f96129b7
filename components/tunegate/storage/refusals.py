"""What every storage refuses, in the same words wherever the bytes lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, ConflictError, OutputExistsError, RunError
from tunegate.storage.interface import Source


def moved(key: str, current: int, wanted: int | None) -> ConflictError:
    """The error of a write or removal that lost its compare-and-swap; 0 and None are no object."""
    return ConflictError(
        f"{key} was moved by somebody else.",
        seen=f"generation {current}" if current else "no object",
        expected=f"generation {wanted}" if wanted else "no object",
        remedy="read it again and decide anew",
    )


def changed(source: Source, seen: str) -> ArtifactError:
    """The error of a file whose bytes are not those that were judged."""
    return ArtifactError(
        f"{source.path} changed while it was uploaded.",
        seen=seen,
        expected=f"sha256 {source.sha256}",
        remedy="make sure that nothing writes to the artifact, and make it again",
    )


def damaged_on_the_way(key: str, storage: str) -> RunError:
    """The error of an object whose bytes changed between here and the server."""
    return RunError(
        f"{key} was damaged on the way to or from {storage}.",
        seen="a checksum of the server's that is not that of the bytes",
        expected="the same bytes on both ends",
        remedy="try again; when it happens twice, look at what lies between this machine and the bucket",
    )


def refuse_damaged(wrong: Sequence[str], *, at: str, files: int) -> None:
    """Refuses what was read from a folder and is not what was stated.

    Args:
        wrong: each file that is missing, changed or extra.
        at: where the folder lies.
        files: how many it should hold.

    Raises:
        ArtifactError: naming the files, when there are any.
    """
    if wrong:
        raise ArtifactError(
            f"{at} is not what it should be.",
            seen=f"{len(wrong)} file(s) differ",
            expected=f"exactly {files} files, byte for byte",
            remedy="somebody changed the storage, or the copy was damaged: read it again, then compare with a backup",
            items=wrong,
        )


def refuse_differences(wrong: Sequence[str], *, at: str, files: int) -> None:
    """Refuses a folder that was uploaded before and is not what should be uploaded.

    Args:
        wrong: each file that is missing, changed or extra.
        at: where the folder lies.
        files: how many it should hold.

    Raises:
        ArtifactError: naming the files, when there are any.
    """
    if wrong:
        raise ArtifactError(
            f"{at} exists and is not what was to be uploaded.",
            seen=f"{len(wrong)} file(s) differ",
            expected=f"exactly {files} files, byte for byte: what was uploaded is never changed",
            remedy="somebody changed the storage: compare with a backup, and move the folder away before a retry",
            items=wrong,
        )


def refuse_download(folder: Path, *, prefix: str, storage: str, found: int) -> None:
    """Refuses to download nothing, or over something.

    Args:
        folder: where to; it must not exist.
        prefix: what is downloaded.
        storage: from where.
        found: how many objects lie below the prefix.

    Raises:
        ArtifactError: when nothing lies there.
        OutputExistsError: when the folder exists.
    """
    if not found:
        raise ArtifactError(
            f"There is nothing below {prefix} in {storage}.",
            seen="no object",
            expected="a folder that was uploaded whole",
            remedy="list what is there, and check the address",
        )
    if folder.exists():
        raise OutputExistsError(
            f"{folder} exists.",
            seen="a file or folder",
            expected="no such path",
            remedy="choose another folder, or remove it yourself",
        )
