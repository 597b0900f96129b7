"""What a storage must do. Its preconditions are Google Cloud Storage's: a write names the generation it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from tunegate.contracts.errors import InputError


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

    @property
    def uri(self) -> str:
        """Where this storage lies, as :func:`tunegate.storage.open.open_storage` would take it."""

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
        """The keys below the folder ``prefix`` ('' for all), sorted; unfinished uploads never show."""

    def delete(self, key: str, *, if_generation_match: int | None = None) -> None:
        """Removes an object; one that is not there is no error, unless a generation was asked for."""

    def upload_folder(self, files: Mapping[str, Source], prefix: str, *, last: str) -> bool:
        """Writes files below ``prefix`` as one thing: whoever sees the file ``last`` sees all of them.

        Args:
            files: name below ``prefix`` → its source. They may come from many folders.
            prefix: must be new, or hold exactly these bytes already; then they are verified, not trusted.
            last: the name whose presence says that the folder is complete: its manifest.

        Returns:
            False when the folder was there already.

        Raises:
            ArtifactError: naming each file whose bytes are not what was stated, here or in the storage.
        """

    def download_folder(self, prefix: str, folder: Path) -> None:
        """Copies what lies below ``prefix`` into ``folder``, which appears complete or not at all.

        Raises:
            OutputExistsError: when ``folder`` exists.
            ArtifactError: when nothing lies below ``prefix``.
        """


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
            expected="a folder such as /data/registry, or file:///data/registry",
            remedy="gs:// is not built yet: use a folder, for example a mounted volume" if scheme == "gs"
            else "give the registry as a folder",
        )  # fmt: skip
    if root.exists() and not root.is_dir():
        raise InputError(
            f"The storage address {uri!r} is a file.",
            seen=str(root),
            expected="a folder, or a path where one can be made",
            remedy="choose another folder",
        )
    return root.absolute()
