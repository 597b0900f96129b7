"""A storage in a bucket of Google Cloud Storage.

An object is replaced whole, and a write that names the generation it replaces is refused when another one is there: the
server does the compare-and-swap. A folder is complete when its last file is there, which is written with the others in
place. Small objects go up in one request; only that honours preconditions on every server.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import checked_relative_path, sync_folder
from tunegate.storage.at_once import at_once
from tunegate.storage.checksums import Checked, crc32c
from tunegate.storage.copying import HashedFile, HashOnly, differences
from tunegate.storage.gcs_client import open_bucket, patiently, reported
from tunegate.storage.gcs_upload import SHA256_METADATA, Upload, check_all, holds, part_start, remove, send
from tunegate.storage.interface import HIDDEN, Blob, Source, checked_key
from tunegate.storage.refusals import (
    changed,
    damaged_on_the_way,
    moved,
    refuse_damaged,
    refuse_differences,
    refuse_download,
)

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def parse_gs(uri: str) -> tuple[str, str]:
    """The bucket and the folder in it that ``gs://bucket/folder`` names.

    Raises:
        InputError: when it names no bucket or no plain folder.
    """
    name, _, folder = uri.removeprefix("gs://").partition("/")
    folder = folder.rstrip("/")
    try:
        if not _BUCKET_NAME.fullmatch(name):
            raise ValueError(f"bucket {name!r}")
        return name, str(checked_relative_path(folder)) if folder else ""
    except (ValueError, ArtifactError) as error:
        raise InputError(
            f"The storage address {uri!r} cannot be used.",
            seen=str(error) if isinstance(error, ValueError) else f"folder {folder!r}",
            expected="gs://bucket or gs://bucket/folder",
            remedy="check the address",
        ) from error


@dataclass(frozen=True)
class GcsStorage:
    """:class:`tunegate.storage.interface.Storage` in the bucket ``bucket``, below ``folder`` ('' for all of it)."""

    bucket: str
    folder: str

    @property
    def uri(self) -> str:
        return f"gs://{self.bucket}/{self.folder}".rstrip("/")

    def refuse_absent(self) -> None:
        open_bucket(self.bucket)

    def read(self, key: str) -> Blob | None:
        from google.api_core.exceptions import NotFound

        found = open_bucket(self.bucket).blob(self._name(key))
        with reported(f"{key} could not be read from {self.uri}."):
            try:
                data = found.download_as_bytes(**patiently())
            except NotFound:
                return None
        if found.crc32c != crc32c(data):
            raise damaged_on_the_way(key, self.uri)
        return Blob(data, int(found.generation))

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        from google.api_core.exceptions import PreconditionFailed

        written = open_bucket(self.bucket).blob(self._name(key))
        with reported(f"{key} could not be written to {self.uri}."):
            try:
                written.upload_from_string(
                    data,
                    content_type="application/octet-stream",
                    if_generation_match=if_generation_match,
                    **patiently(),
                )
            except PreconditionFailed as error:
                raise moved(key, self._generation(key), if_generation_match) from error
        if written.crc32c != crc32c(data):
            raise damaged_on_the_way(key, self.uri)
        return int(written.generation)

    def exists(self, key: str) -> bool:
        return self._generation(key) != 0

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self._blobs(prefix) if not _is_hidden(key))

    def delete(self, key: str, *, if_generation_match: int | None = None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with reported(f"{key} could not be removed from {self.uri}."):
            current = self._generation(key)  # asked first as well: a test server ignores this precondition
            if if_generation_match is not None and current != if_generation_match:
                raise moved(key, current, if_generation_match)
            if not current:
                return
            try:
                open_bucket(self.bucket).blob(self._name(key)).delete(
                    if_generation_match=if_generation_match, **patiently()
                )
            except (PreconditionFailed, NotFound) as error:
                if if_generation_match is not None:
                    raise moved(key, self._generation(key), if_generation_match) from error

    def upload_folder(self, files: Mapping[str, Source], prefix: str, *, last: str) -> bool:
        for name in files:
            self._name(f"{prefix}/{name}")
        blobs = self._blobs(prefix.rpartition("/")[0])  # the siblings as well: what one holds is copied from there
        there = {key.removeprefix(f"{prefix}/"): blob for key, blob in blobs.items() if key.startswith(f"{prefix}/")}
        checked = check_all(files)
        won = False
        if last not in there:
            with reported(f"{prefix} could not be uploaded to {self.uri}."):
                at_once(remove, [there[name] for name in _strangers(there, files)])
                siblings = {(blob.metadata or {}).get(SHA256_METADATA, ""): blob for blob in blobs.values()}
                start = f"{self._name(prefix)}/"
                files_before = {name: file for name, file in checked.items() if name != last}
                send(Upload(self.bucket, start, files_before, siblings), there)
            won = self._write_last(f"{prefix}/{last}", checked[last])
        if not won:
            refuse_differences(
                differences({name: source.sha256 for name, source in files.items()}, self.hashes(prefix)),
                at=f"{self.uri}/{prefix}",
                files=len(files),
            )
        return won

    def download_folder(self, prefix: str, folder: Path, *, sha256: Mapping[str, str] | None = None) -> None:
        blobs = self._folder(prefix)
        refuse_download(folder, prefix=prefix, storage=self.uri, found=len(blobs))
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)

        def fetch(name: str) -> str:
            with HashedFile(partial / checked_relative_path(name)) as file:
                blobs[name].download_to_file(file, **patiently())
            return file.sha256

        with reported(f"{prefix} could not be downloaded from {self.uri}."):
            present = dict(zip(blobs, at_once(fetch, blobs), strict=True))
        if sha256 is not None:
            refuse_damaged(differences(sha256, present), at=f"{self.uri}/{prefix}", files=len(sha256))
        partial.replace(folder)
        sync_folder(folder.parent)

    def hashes(self, prefix: str) -> dict[str, str]:
        def hashed(blob: Any) -> str:
            digest = HashOnly()
            blob.download_to_file(digest, **patiently())
            return digest.sha256

        blobs = self._folder(prefix)
        with reported(f"{prefix} could not be read from {self.uri}."):
            return dict(zip(blobs, at_once(hashed, blobs.values()), strict=True))

    def stamps(self, prefix: str) -> dict[str, int]:
        return {key.removeprefix(f"{prefix}/"): int(blob.generation) for key, blob in self._blobs(prefix).items()}

    def remove_folder(self, prefix: str, *, first: str, stamps: Mapping[str, int] | None = None) -> None:
        seen = self.stamps(prefix) if stamps is None else stamps
        if first in seen:
            self.delete(f"{prefix}/{first}", if_generation_match=seen[first])
        elif there := self._generation(f"{prefix}/{first}"):
            raise moved(f"{prefix}/{first}", there, 0)

        def remove_as_seen(name: str) -> None:
            with contextlib.suppress(ConflictError):  # somebody uploads it anew, or removed it
                self.delete(f"{prefix}/{name}", if_generation_match=seen[name])

        at_once(remove_as_seen, seen.keys() - {first})

    def remove_unfinished(self, prefix: str, *, last: str) -> None:
        keys = self._blobs(prefix).keys()
        folders = {key.removeprefix(f"{prefix}/").split("/")[0] for key in keys}
        for folder in sorted(folders):
            if f"{prefix}/{folder}/{last}" not in keys:
                self.remove_folder(f"{prefix}/{folder}", first=last)

    def _name(self, key: str) -> str:
        return f"{self.folder}/{checked_key(key)}".lstrip("/")

    def _generation(self, key: str) -> int:
        with reported(f"{key} could not be read from {self.uri}."):
            found = open_bucket(self.bucket).get_blob(self._name(key), **patiently())
        return int(found.generation) if found else 0

    def _blobs(self, prefix: str) -> dict[str, Any]:
        """Key → object for everything below the folder ``prefix``, the storage's own included."""
        start = self._name(prefix) if prefix else self.folder
        with reported(f"{self.uri} could not be listed."):
            listed = open_bucket(self.bucket).list_blobs(prefix=f"{start}/" if start else None, **patiently())
            found = {blob.name: blob for blob in listed}
        keys = {name.removeprefix(f"{self.folder}/" if self.folder else ""): blob for name, blob in found.items()}
        # A name that ends in a slash is the mark that a web console makes for an empty folder.
        return {key: blob for key, blob in keys.items() if not key.endswith("/")}

    def _folder(self, prefix: str) -> dict[str, Any]:
        """Name below ``prefix`` → object."""
        return {key.removeprefix(f"{prefix}/"): b for key, b in self._blobs(prefix).items() if not _is_hidden(key)}

    def _write_last(self, key: str, file: Checked) -> bool:
        """Writes the file that says that the folder is complete; False when somebody else did."""
        from google.api_core.exceptions import PreconditionFailed

        blob = open_bucket(self.bucket).blob(self._name(key))
        with reported(f"{key} could not be uploaded to {self.uri}."):
            try:
                blob.upload_from_filename(str(file.source.path), if_generation_match=0, **patiently())
            except PreconditionFailed:
                return False
            if not holds(blob, file):
                remove(blob)
                raise changed(file.source, "other bytes in the bucket")
        return True


def _is_hidden(key: str) -> bool:
    return f"/{HIDDEN}" in f"/{key}"


def _strangers(there: Mapping[str, Any], files: Mapping[str, Source]) -> list[str]:
    """What an upload of something else left in a folder; parts of these files are none."""
    parts = tuple(part_start(source.sha256) for source in files.values())
    return [name for name in there if name not in files and not name.startswith(parts)]
