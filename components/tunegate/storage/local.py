"""A storage in a folder that several processes share, on one machine or on a volume with POSIX locks.

A generation is the file's modification time in nanoseconds, made strictly increasing, so that one rename moves the
bytes and their generation together: a reader, and whoever comes after a killed writer, sees the old object or the new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import InputError, RunError
from tunegate.contracts.files import files_below, sha256_file, sync_folder
from tunegate.storage.copying import copy_checked, copy_hashed, differences
from tunegate.storage.interface import HIDDEN, Blob, Source, checked_key
from tunegate.storage.refusals import moved, refuse_damaged, refuse_differences, refuse_download

_LOCK_NAME = f"{HIDDEN}lock"

#: How far a modification time is advanced until the file system shows it as later: some keep microseconds or less.
_CLOCK_STEPS_NS = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)


@dataclass(frozen=True)
class LocalStorage:
    """:class:`tunegate.storage.interface.Storage` in the folder ``root``."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def refuse_absent(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                f"The storage {self.root} does not exist.",
                seen=f"no folder {self.root}",
                expected="a folder that outlives this step",
                remedy="on a cluster, mount a shared volume there; on this machine, create the folder",
            )

    def read(self, key: str) -> Blob | None:
        with _reported(f"{key} could not be read from {self.root}."):
            try:
                with self._path(key).open("rb") as file:  # the open file stays one generation, whatever is renamed
                    return Blob(file.read(), os.fstat(file.fileno()).st_mtime_ns)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def write(self, key: str, data: bytes, *, if_generation_match: int | None) -> int:
        path = self._path(key)
        with _reported(f"{key} could not be written to {self.root}."), self._locked():
            current = self._generation(path)
            _check_generation(key, current, if_generation_match)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{HIDDEN}{path.name}")  # under the lock, only a killed writer's is there
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                generation = _set_generation(partial, after=current)
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
            return generation

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> list[str]:
        start = self._path(prefix) if prefix else self.root
        found: list[str] = []
        with _reported(f"{self.root} could not be listed."):
            for folder, folders, names in os.walk(start):
                folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
                below = Path(folder).relative_to(self.root)
                found += [(below / name).as_posix() for name in names if not name.startswith(HIDDEN)]
        return sorted(found)

    def delete(self, key: str, *, if_generation_match: int | None = None) -> None:
        path = self._path(key)
        with _reported(f"{key} could not be removed from {self.root}."), self._locked():
            _check_generation(key, self._generation(path), if_generation_match)
            path.unlink(missing_ok=True)

    def upload_folder(self, files: Mapping[str, Source], prefix: str, *, last: str) -> bool:
        target = self._path(prefix)
        for name in files:
            self._path(f"{prefix}/{name}")
        if target.exists():
            self._refuse_other_bytes(files, target)
            return False
        with _reported(f"{prefix} could not be uploaded to {self.root}."), contextlib.ExitStack() as stack:
            with self._locked():  # a new folder is never taken for an abandoned one
                target.parent.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(target.parent, f"{target.name}-*")
                partial = stack.enter_context(_held_folder(target))
            for name in sorted(files, key=lambda name: (name == last, name)):
                copy_checked(files[name], partial / name)
            for folder, _, _ in os.walk(partial, topdown=False):
                sync_folder(Path(folder))
            won = _renamed(partial, target)
            sync_folder(target.parent)
        if not won:
            self._refuse_other_bytes(files, target)
        return won

    def download_folder(self, prefix: str, folder: Path, *, sha256: Mapping[str, str] | None = None) -> None:
        names = [key.removeprefix(f"{prefix}/") for key in self.list(prefix)]
        refuse_download(folder, prefix=prefix, storage=self.uri, found=len(names))
        partial = folder.with_name(folder.name + ".partial")
        with _reported(f"{prefix} could not be downloaded to {folder}."):
            shutil.rmtree(partial, ignore_errors=True)
            for below, _, _ in os.walk(self._path(prefix)):  # an empty folder as well: whoever verifies should see it
                (partial / Path(below).relative_to(self._path(prefix))).mkdir(parents=True)
            present = {name: copy_hashed(self._path(f"{prefix}/{name}"), partial / name) for name in names}
            if sha256 is not None:
                refuse_damaged(differences(sha256, present), at=str(self._path(prefix)), files=len(sha256))
            partial.replace(folder)
            sync_folder(folder.parent)

    def hashes(self, prefix: str) -> dict[str, str]:
        with _reported(f"{prefix} could not be read from {self.root}."):
            return {key.removeprefix(f"{prefix}/"): sha256_file(self._path(key)) for key in self.list(prefix)}

    def stamps(self, prefix: str) -> dict[str, int]:
        return {key.removeprefix(f"{prefix}/"): self._generation(self._path(key)) for key in self.list(prefix)}

    def remove_folder(self, prefix: str, *, first: str, stamps: Mapping[str, int] | None = None) -> None:
        target = self._path(prefix)
        with _reported(f"{prefix} could not be removed from {self.root}."):
            hidden = target.with_name(f"{HIDDEN}{target.name}-{secrets.token_hex(8)}")
            with contextlib.suppress(FileNotFoundError), self._locked():
                if stamps is not None:
                    _check_generation(f"{prefix}/{first}", self._generation(target / first), stamps.get(first, 0))
                target.rename(hidden)  # gone at once, whatever happens to the rest
                sync_folder(target.parent)
            shutil.rmtree(hidden, ignore_errors=True)

    def remove_unfinished(self, prefix: str, *, last: str) -> None:
        with _reported(f"{prefix} could not be cleared in {self.root}."), self._locked():
            _remove_abandoned(self._path(prefix), "*")

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _generation(self, path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the storage's one exclusive lock; the kernel frees it when its holder dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK_NAME).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _refuse_other_bytes(self, files: Mapping[str, Source], target: Path) -> None:
        present = {name: sha256_file(target / name) for name in files_below(target)}
        wrong = differences({name: source.sha256 for name, source in files.items()}, present)
        refuse_differences(wrong, at=str(target), files=len(files))


def _check_generation(key: str, current: int, wanted: int | None) -> None:
    if wanted is not None and current != wanted:
        raise moved(key, current, wanted)


def _set_generation(path: Path, *, after: int) -> int:
    """Gives a file a modification time later than ``after``, and returns it as the file system keeps it."""
    wanted = max(time.time_ns(), after + 1)
    for step in _CLOCK_STEPS_NS:
        os.utime(path, ns=(wanted, wanted))
        kept = path.stat().st_mtime_ns
        if kept > after:
            return kept
        wanted = after + step
    raise RunError(
        f"The file system of {path} does not keep modification times.",
        seen=f"{kept} after setting {wanted}",
        expected=f"more than {after}",
        remedy="put the registry on another file system",
    )


@contextlib.contextmanager
def _held_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked while it is filled: so others tell a live upload from an abandoned one."""
    folder = target.with_name(f"{HIDDEN}{target.name}-{secrets.token_hex(8)}")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already when it was renamed
        os.close(descriptor)


def _remove_abandoned(parent: Path, pattern: str) -> None:
    """Removes what killed uploads and removals left in ``parent``; ``pattern`` follows the hidden prefix."""
    for folder in parent.glob(f"{HIDDEN}{pattern}"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody is uploading right now
        finally:
            os.close(descriptor)


def _renamed(partial: Path, target: Path) -> bool:
    """Renames a folder to its place; False when another one came first."""
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@contextlib.contextmanager
def _reported(failed: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            failed,
            seen=f"{type(error).__name__}: {error}",
            expected="a folder that can be read and written, with space left",
            remedy="check the folder's permissions and space, then run again: what was finished stays finished",
        ) from error
