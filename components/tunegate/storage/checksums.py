"""The checksums of a file, from one reading: what it must be, and what a bucket states of what it holds."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from tunegate.storage.interface import Source
from tunegate.storage.refusals import changed

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Checked:
    """A file whose bytes were seen to be those that were stated.

    Attributes:
        source: the file.
        size_bytes: its size.
        crc32c: its CRC32C in base64, as Google Cloud Storage states it for every object.
        parts: the CRC32C of each part, where the file is sent in parts; empty otherwise.
    """

    source: Source
    size_bytes: int
    crc32c: str
    parts: tuple[str, ...] = ()


def check(source: Source, *, part_bytes: int = 0) -> Checked:
    """Reads a file once.

    Args:
        source: the file and the sha256 that it must have.
        part_bytes: how large a part is; 0: it is not sent in parts.

    Raises:
        ArtifactError: when the bytes changed since their digest was taken.
    """
    import google_crc32c

    digest, whole, size = sha256(), google_crc32c.Checksum(), 0
    parts: list[Any] = []
    with source.path.open("rb") as file:
        while chunk := file.read(min(_CHUNK_BYTES, part_bytes - size % part_bytes) if part_bytes else _CHUNK_BYTES):
            if part_bytes:
                if size % part_bytes == 0:
                    parts.append(google_crc32c.Checksum())
                parts[-1].update(chunk)
            digest.update(chunk)
            whole.update(chunk)
            size += len(chunk)
    if digest.hexdigest() != source.sha256:
        raise changed(source, f"sha256 {digest.hexdigest()}")
    return Checked(source, size, _base64(whole), tuple(_base64(part) for part in parts))


def crc32c(data: bytes) -> str:
    """The CRC32C of some bytes, in base64."""
    import google_crc32c

    return _base64(google_crc32c.Checksum(data))


def _base64(checksum: Any) -> str:
    return base64.b64encode(checksum.digest()).decode()
