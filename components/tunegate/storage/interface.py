"""What a storage must do. Its preconditions are Google Cloud Storage's: a write names the generation it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from tunegate.contracts.errors import ArtifactError, InputError
from tunegate.contracts.files import checked_relative_path

#: Names that start so belong to the storage itself, and are never keys.
HIDDEN = ".tunegate-"


@dataclass(frozen=True)
class Blob:
    """A small object as it was read at once.

    Attributes:
        data: its bytes.
        generation: the number of this write; larger than that of every earlier write of the key.
    """

    data: bytes
    generation: int


@dataclass(frozen=True)
class Source:
    """A file to upload, with the sha256 (hex) that its bytes must have on arrival."""

    path: Path
    sha256: str


class Storage(Protocol):
    """Objects by key (a relative POSIX path). Small objects move atomically; folders are written once, as a whole."""

    def __hash__(self) -> int:
        """A storage can be a key: two of the same address are the same."""

    @property
    def uri(self) -> str:
        """Where this storage lies, as :func:`tunegate.storage.open.open_storage` would take it."""

    def refuse_absent(self) -> None:
        """Refuses a place that is not there, or that cannot be reached: asked before anything is spent.

        Raises:
            InputError: saying what is missing: the folder, the bucket, the credentials, the permission.
        """

    def read(self, key: str) -> Blob | None:
        """The object and its generation, or None when there is none."""

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        """Writes a small object atomically and returns its new generation.

        Args:
            key: where.
            data: the whole object.
            if_generation_match: the generation it replaces; 0: there must be no object; None: whatever is there.

        Raises:
            ConflictError: when another generation is there.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""

    def list(self, prefix: str) -> list[str]:
        """The keys below the folder ``prefix`` ('' for all), sorted.

        A folder that is being uploaded to a bucket shows file by file: look for the file that its uploader writes last.
        """

    def delete(self, key: str, *, if_generation_match: int | None = None) -> None:
        """Removes an object; one that is not there is no error, unless a generation was asked for."""

    def upload_folder(self, files: Mapping[str, Source], prefix: str, *, last: str) -> bool:
        """Writes files below ``prefix`` as one thing: whoever sees the file ``last`` sees all of them.

        Args:
            files: name below ``prefix`` → its source. They may come from many folders.
            prefix: must be new, or hold exactly these bytes already; then they are verified, not trusted. What an
                upload that never finished left there is replaced.
            last: the name whose presence says that the folder is complete: its manifest.

        Returns:
            False when the folder was there already.

        Raises:
            ArtifactError: naming each file whose bytes are not what was stated, here or in the storage.
        """

    def download_folder(self, prefix: str, folder: Path, *, sha256: Mapping[str, str] | None = None) -> None:
        """Copies what lies below ``prefix`` into ``folder``, which appears complete or not at all.

        Args:
            prefix: what.
            folder: a new folder.
            sha256: name → sha256 of every file, which are compared while they are read; without it, whoever asked
                verifies the copy.

        Raises:
            OutputExistsError: when ``folder`` exists.
            ArtifactError: when nothing lies below ``prefix``; or naming each file that is missing, changed or extra.
        """

    def hashes(self, prefix: str) -> dict[str, str]:
        """Name below ``prefix`` → sha256, from reading every byte that is stored."""

    def stamps(self, prefix: str) -> dict[str, int]:
        """Name below ``prefix`` → generation, for :meth:`remove_folder`; what an unfinished upload left included."""

    def remove_folder(self, prefix: str, *, first: str, stamps: Mapping[str, int] | None = None) -> None:
        """Removes what lies below ``prefix``, ``first`` before the rest: nobody takes what is left for complete.

        Args:
            prefix: what.
            first: the name whose presence says that the folder is complete.
            stamps: what :meth:`stamps` returned; what was uploaded since stays.

        Raises:
            ConflictError: when another ``first`` is there than then. Nothing was removed.
        """

    def remove_unfinished(self, prefix: str, *, last: str) -> None:
        """Removes the folders below ``prefix`` whose upload never finished; ``last`` is what a finished one holds.

        For a place that one process writes to: in a bucket, the upload of another one looks the same.
        """


def checked_key(key: str) -> str:
    """``key``, when it can be one.

    Raises:
        ArtifactError: for a path that leaves the storage, or a name of the storage's own.
    """
    path = checked_relative_path(key)
    if any(part.startswith(HIDDEN) for part in path.parts):
        raise ArtifactError(
            f"The key {key!r} is not allowed.",
            seen=f"a part that starts with {HIDDEN!r}",
            expected="another name; these are the storage's own",
            remedy="choose another name",
        )
    return key


def local_root(uri: str) -> Path:
    """The folder that a path or file:// URI names.

    Raises:
        InputError: for an empty text, another host, another scheme, or a path that is a file.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme if "://" in uri else ""
    if scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        root = Path(unquote(parts.path))
    elif not scheme and uri.strip():
        root = Path(uri).expanduser()
    else:
        raise InputError(
            f"The storage address {uri!r} cannot be used.",
            seen=f"scheme {scheme!r}" if scheme else "an empty address",
            expected="a folder such as /data/registry, file:///data/registry, or gs://bucket/registry",
            remedy="give a folder, or a bucket with a folder in it",
        )
    if root.exists() and not root.is_dir():
        raise InputError(
            f"The storage address {uri!r} is a file.",
            seen=str(root),
            expected="a folder, or a path where one can be made",
            remedy="choose another folder",
        )
    return root.absolute()
