"""Sends a folder to a bucket: in parallel, only what is not there yet, and looks at what arrived.

Every object states its size and CRC32C, so a retry lists the folder and sends the rest. A large file is sent in parts
that are joined inside the bucket: a killed upload loses the parts it was sending, and not the file. Bytes that lie in
a sibling folder already are copied inside the bucket.

Whoever writes ``<prefix>/<name>`` writes the same bytes, so it does not matter who comes first: what counts is what the
bucket holds in the end. Only the last file, which the caller writes when the others are seen to be right, is a race.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.storage.at_once import WORKERS, at_once
from tunegate.storage.checksums import Checked, check
from tunegate.storage.gcs_client import open_bucket, patiently
from tunegate.storage.interface import HIDDEN, Source
from tunegate.storage.refusals import changed

#: Below a folder: the parts of its large files, until they are joined.
PARTS = f"{HIDDEN}parts"

#: A larger file is sent in parts.
IN_PARTS_ABOVE_BYTES = 64 << 20

#: One part, and one request: what a broken connection costs. With eight at once a kill loses 128 MiB at most.
PART_BYTES = 16 << 20

#: The custom metadata in which each object states the sha256 of its bytes: by it a sibling's object is found.
SHA256_METADATA = "tunegate-sha256"

#: How many objects Google Cloud Storage joins in one request.
_JOINED_AT_ONCE = 32


@dataclass(frozen=True)
class Upload:
    """What is sent, and where to.

    Attributes:
        bucket: the bucket's name.
        start: what stands before each name in it, the slash included.
        files: name → the file.
        siblings: sha256 → an object of the bucket that states it.
    """

    bucket: str
    start: str
    files: Mapping[str, Checked]
    siblings: Mapping[str, Any]

    def blob(self, name: str, sha256: str = "") -> Any:
        """A new object of that name; nothing is asked."""
        blob = open_bucket(self.bucket).blob(self.start + name, chunk_size=_chunk_bytes())
        if sha256:
            blob.metadata = {SHA256_METADATA: sha256}
        return blob


def check_all(files: Mapping[str, Source]) -> dict[str, Checked]:
    """Every file, read once.

    Raises:
        ArtifactError: when the bytes of one changed since its digest was taken.
    """

    def checked(source: Source) -> Checked:
        in_parts = source.path.stat().st_size > IN_PARTS_ABOVE_BYTES
        return check(source, part_bytes=PART_BYTES if in_parts else 0)

    return dict(zip(files, at_once(checked, files.values()), strict=True))


def part_start(sha256: str) -> str:
    """How the names of the parts of a file start: by what the file holds, so that a retry finds them."""
    return f"{PARTS}/{sha256}/{PART_BYTES}-"


def holds(blob: Any, file: Checked) -> bool:
    """Whether an object holds as many bytes as a file, with the same CRC32C."""
    return int(blob.size or 0) == file.size_bytes and blob.crc32c == file.crc32c


def send(upload: Upload, there: Mapping[str, Any]) -> None:
    """Brings every file into the bucket, and looks at what arrived.

    Args:
        upload: what and where to.
        there: name → object, for all that lies in the folder already, parts included.

    Raises:
        ArtifactError: when other bytes arrived than those that were checked; they are removed.
    """
    missing = {name: file for name, file in upload.files.items() if not (name in there and holds(there[name], file))}
    at_once(remove, [there[name] for name in missing.keys() & there.keys()])
    copied = at_once(lambda name: _copied(upload, name), missing)
    missing = {name: file for (name, file), done in zip(missing.items(), copied, strict=True) if not done}
    _upload_many(
        [(str(f.source.path), upload.blob(name, f.source.sha256)) for name, f in missing.items() if not f.parts]
    )
    for name, file in missing.items():
        if file.parts:
            _send_in_parts(upload, name, file, there)
    _refuse_other_arrivals(upload)


def remove(blob: Any) -> None:
    """Removes an object as it was seen; one that was replaced since stays."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with contextlib.suppress(NotFound, PreconditionFailed):
        blob.delete(if_generation_match=blob.generation, **patiently())


def _copied(upload: Upload, name: str) -> bool:
    """Copies a file from a sibling folder, where its bytes lie there; a sibling that is removed meanwhile is none."""
    from google.api_core.exceptions import NotFound

    file = upload.files[name]
    sibling = upload.siblings.get(file.source.sha256)
    if sibling is None or not holds(sibling, file):
        return False
    copy, token = upload.blob(name, file.source.sha256), None
    with contextlib.suppress(NotFound):
        while True:  # a large object takes more than one request where the storage class changes
            token, _, _ = copy.rewrite(sibling, token=token, **patiently())
            if token is None:
                return True
    return False


def _send_in_parts(upload: Upload, name: str, file: Checked, there: Mapping[str, Any]) -> None:
    """Sends the parts that are not there yet, joins them, and removes them."""
    from google.api_core.exceptions import NotFound

    parts, missing = [], []
    for number, crc32c in enumerate(file.parts):
        key = f"{part_start(file.source.sha256)}{number:05d}"
        parts.append(upload.blob(key))
        if not (key in there and there[key].crc32c == crc32c):
            if key in there:
                remove(there[key])
            start = number * PART_BYTES
            missing.append((_Slice(file.source.path, start, min(PART_BYTES, file.size_bytes - start)), parts[-1]))
    _upload_many(missing)
    left = [*parts]
    # Somebody who uploads the same file may have joined the parts and removed them: what counts is what lies there.
    with contextlib.suppress(NotFound):
        while len(parts) > 1:
            groups = [parts[at : at + _JOINED_AT_ONCE] for at in range(0, len(parts), _JOINED_AT_ONCE)]
            whole = upload.blob(name, file.source.sha256)
            parts = [whole] if len(groups) == 1 else [upload.blob(f"{_name(upload, group[0])}+") for group in groups]
            left += parts if len(groups) > 1 else []
            at_once(_join, zip(parts, groups, strict=True))
    at_once(remove, left)


def _name(upload: Upload, blob: Any) -> str:
    return str(blob.name).removeprefix(upload.start)


def _join(work: tuple[Any, list[Any]]) -> None:
    target, parts = work
    target.compose(parts, **patiently())


def _refuse_other_arrivals(upload: Upload) -> None:
    """One listing says what the bucket holds now; what is not what was checked is taken back."""
    listed = open_bucket(upload.bucket).list_blobs(prefix=upload.start, **patiently())
    found = {_name(upload, blob): blob for blob in listed}
    wrong = [name for name, file in upload.files.items() if not (name in found and holds(found[name], file))]
    at_once(remove, [found[name] for name in wrong if name in found])
    for name in sorted(wrong):
        seen = "other bytes in the bucket" if name in found else "no such object in the bucket"
        raise changed(upload.files[name].source, seen)


def _upload_many(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Uploads files, or slices of them, where no such object is. One request each up to 8 MiB, several above."""
    from google.cloud.storage import transfer_manager

    by_size: dict[int | None, list[tuple[Any, Any]]] = {}
    for file, blob in pairs:
        by_size.setdefault(None if isinstance(file, str) else file.size_bytes, []).append((file, blob))
    for size, group in by_size.items():
        transfer_manager.upload_many(
            group,
            skip_if_exists=True,
            upload_kwargs={**patiently(), **({} if size is None else {"size": size})},
            raise_exception=True,
            worker_type=transfer_manager.THREAD,
            max_workers=WORKERS,
        )


def _chunk_bytes() -> int:
    """What one request of a larger upload carries: whole quarters of a MiB, as Google Cloud Storage asks."""
    return max(PART_BYTES >> 18, 1) << 18


class _Slice:
    """A part of a file, as the client reads it: opened for each reading, so that a thousand parts hold no handle."""

    def __init__(self, path: Path, start: int, size_bytes: int) -> None:
        self._path, self._start, self.size_bytes, self._at = path, start, size_bytes, 0

    def read(self, size: int = -1) -> bytes:
        left = self.size_bytes - self._at
        with self._path.open("rb") as file:
            file.seek(self._start + self._at)
            data = file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size_bytes)[whence]
        return self._at
