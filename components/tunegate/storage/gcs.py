"""A storage in a bucket of Google Cloud Storage.

An object is replaced whole, and a write that names the generation it replaces is refused when another one is there: the
server does the compare-and-swap. A folder is complete when its last file is there, which is written with the others in
place. Small objects go up in one request; only that honours preconditions on every server.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import checked_relative_path, sync_folder
from tunegate.storage.gcs_client import open_bucket, reported
from tunegate.storage.interface import HIDDEN, Blob, Source, checked_key
from tunegate.storage.refusals import changed, moved, refuse_differences, refuse_download

_CHUNK_BYTES = 4 << 20
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

#: How often a read starts over when the object was replaced between the question for it and its bytes.
_READS = 20


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

        name = self._name(key)
        with reported(f"{key} could not be read from {self.uri}."):
            for _ in range(_READS):
                found = open_bucket(self.bucket).get_blob(name)
                if found is None:
                    return None
                generation = int(found.generation)
                try:
                    return Blob(
                        open_bucket(self.bucket).blob(name, generation=generation).download_as_bytes(), generation
                    )
                except NotFound:  # replaced in between
                    continue
        raise ConflictError(
            f"{key} in {self.uri} changes faster than it can be read.",
            seen=f"another generation {_READS} times in a row",
            expected="an object that stays for as long as one request takes",
            remedy="try again later",
        )

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        from google.api_core.exceptions import PreconditionFailed

        written = open_bucket(self.bucket).blob(self._name(key))
        with reported(f"{key} could not be written to {self.uri}."):
            try:
                written.upload_from_string(
                    data, content_type="application/octet-stream", if_generation_match=if_generation_match
                )
            except PreconditionFailed as error:
                raise moved(key, self._generation(key), if_generation_match) from error
            return int(written.generation)

    def exists(self, key: str) -> bool:
        return self._generation(key) != 0

    def list(self, prefix: str) -> list[str]:
        return sorted(self._blobs(prefix))

    def delete(self, key: str, *, if_generation_match: int | None = None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with reported(f"{key} could not be removed from {self.uri}."):
            current = self._generation(key)  # asked first as well: a test server ignores this precondition
            if if_generation_match is not None and current != if_generation_match:
                raise moved(key, current, if_generation_match)
            if not current:
                return
            try:
                open_bucket(self.bucket).blob(self._name(key)).delete(if_generation_match=if_generation_match)
            except (PreconditionFailed, NotFound) as error:
                if if_generation_match is not None:
                    raise moved(key, self._generation(key), if_generation_match) from error

    def upload_folder(self, files: Mapping[str, Source], prefix: str, *, last: str) -> bool:
        for name in files:
            self._name(f"{prefix}/{name}")
        if self.exists(f"{prefix}/{last}"):
            self._refuse_other_bytes(files, prefix)
            return False
        for key in self.list(prefix):
            if key.removeprefix(f"{prefix}/") not in files:  # of an upload that never finished
                self.delete(key)
        for name in sorted(files.keys() - {last}):
            self._upload(files[name], f"{prefix}/{name}")
        won = self._upload(files[last], f"{prefix}/{last}")
        if not won:
            self._refuse_other_bytes(files, prefix)
        return won

    def download_folder(self, prefix: str, folder: Path) -> None:
        blobs = self._blobs(prefix)
        refuse_download(folder, prefix=prefix, storage=self.uri, found=len(blobs))
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with reported(f"{prefix} could not be downloaded from {self.uri}."):
            for key, blob in sorted(blobs.items()):
                path = partial / checked_relative_path(key.removeprefix(f"{prefix}/"))
                path.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(str(path))
        partial.replace(folder)
        sync_folder(folder.parent)

    def remove_folder(self, prefix: str, *, first: str) -> None:
        self.delete(f"{prefix}/{first}")
        for key in self.list(prefix):
            self.delete(key)

    def remove_unfinished(self, prefix: str, *, last: str) -> None:
        keys = self.list(prefix)
        folders = {key.removeprefix(f"{prefix}/").split("/")[0] for key in keys}
        for folder in sorted(folders):
            if f"{prefix}/{folder}/{last}" not in keys:
                self.remove_folder(f"{prefix}/{folder}", first=last)

    def _name(self, key: str) -> str:
        return f"{self.folder}/{checked_key(key)}".lstrip("/")

    def _generation(self, key: str) -> int:
        with reported(f"{key} could not be read from {self.uri}."):
            found = open_bucket(self.bucket).get_blob(self._name(key))
        return int(found.generation) if found else 0

    def _blobs(self, prefix: str) -> dict[str, Any]:
        """Key → object for everything below the folder ``prefix``."""
        start = self._name(prefix) if prefix else self.folder
        with reported(f"{self.uri} could not be listed."):
            found = {
                blob.name: blob for blob in open_bucket(self.bucket).list_blobs(prefix=f"{start}/" if start else None)
            }
        keys = {name.removeprefix(f"{self.folder}/" if self.folder else ""): blob for name, blob in found.items()}
        # A name that ends in a slash is the mark that a web console makes for an empty folder.
        return {key: blob for key, blob in keys.items() if not (key.endswith("/") or f"/{HIDDEN}" in f"/{key}")}

    def _upload(self, source: Source, key: str) -> bool:
        """Uploads a file unless the same bytes are there, and looks at what arrived; False when they were there."""
        from google.api_core.exceptions import PreconditionFailed

        sha256, md5 = _digests(source.path)
        if sha256 != source.sha256:
            raise changed(source, sha256)
        name, there = self._name(key), None
        with reported(f"{key} could not be uploaded to {self.uri}."):
            there = open_bucket(self.bucket).get_blob(name)
            if there is not None and _holds(there, source, md5):
                return False
            won = True
            try:
                open_bucket(self.bucket).blob(name).upload_from_filename(
                    str(source.path), if_generation_match=int(there.generation) if there else 0
                )
            except PreconditionFailed:  # somebody uploads the same folder; what counts is what lies there now
                won = False
            arrived = open_bucket(self.bucket).get_blob(name)
            if arrived is None or not _holds(arrived, source, md5):
                if won and arrived is not None:
                    self.delete(key, if_generation_match=int(arrived.generation))
                raise changed(source, "other bytes in the bucket")
            return won

    def _refuse_other_bytes(self, files: Mapping[str, Source], prefix: str) -> None:
        blobs = {key.removeprefix(f"{prefix}/"): blob for key, blob in self._blobs(prefix).items()}
        wrong = [f"{name}: missing" for name in sorted(files.keys() - blobs)]
        wrong += [f"{name}: extra" for name in sorted(blobs.keys() - files.keys())]
        with reported(f"{prefix} could not be compared with {self.uri}."):
            for name in sorted(blobs.keys() & files.keys()):
                sha256, md5 = _digests(files[name].path)
                if sha256 != files[name].sha256:
                    raise changed(files[name], sha256)
                if not _holds(blobs[name], files[name], md5):
                    wrong.append(f"{name}: changed")
        refuse_differences(wrong, at=f"{self.uri}/{prefix}", files=len(files))


def _digests(path: Path) -> tuple[str, str]:
    """The sha256 of a file in hex, and its md5 as the server states it, from one reading."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), base64.b64encode(md5.digest()).decode()


def _holds(blob: Any, source: Source, md5: str) -> bool:
    """Whether an object holds a file's bytes. The server states the md5 of what it has; a composed object has none."""
    if blob.md5_hash:
        return bool(blob.md5_hash == md5)
    digest = hashlib.sha256()
    with blob.open("rb", chunk_size=_CHUNK_BYTES) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == source.sha256
