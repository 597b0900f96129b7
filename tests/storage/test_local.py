"""What a storage in a folder promises beside: generations that grow, no lock left, leftovers swept up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tunegate.contracts.errors import ArtifactError, InputError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.storage.interface import HIDDEN, Source
from tunegate.storage.local import LocalStorage
from tunegate.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "registry")


def _sources(folder: Path, **files: str) -> dict[str, Source]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: Source(folder / name, sha256_file(folder / name)) for name in files}


def test_generations_only_grow_even_when_the_clock_goes_back(storage: LocalStorage) -> None:
    generation = storage.write("a", b"0", if_generation_match=0)
    future = time.time_ns() + 3_600_000_000_000
    os.utime(storage.root / "a", ns=(future, future))
    seen = [generation, future]
    for number in range(50):
        seen.append(storage.write("a", b"%d" % number, if_generation_match=None))
    assert seen == sorted(set(seen))


def test_a_folder_that_lost_its_last_file_is_refused_and_not_repaired(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    storage.upload_folder(files, "v/1", last="one")
    (storage.root / "v/1/one").unlink()
    with pytest.raises(ArtifactError) as caught:
        storage.upload_folder(files, "v/1", last="one")
    assert caught.value.items == ("one: missing",)


def test_bytes_that_changed_since_they_were_judged_leave_nothing_behind(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    (tmp_path / "in/two").write_text("tampered")
    with pytest.raises(ArtifactError, match="two changed while it was uploaded"):
        storage.upload_folder(files, "v/1", last="one")
    assert [path.name for path in (storage.root / "v").iterdir()] == []


def test_what_a_killed_writer_left_is_invisible_and_swept_up(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1")
    storage.write("v/a", b"old", if_generation_match=0)
    (storage.root / f"v/{HIDDEN}a").write_bytes(b"half")
    (storage.root / f"v/{HIDDEN}1-dead").mkdir()
    (storage.root / f"v/{HIDDEN}1-dead/one").write_text("half")
    assert storage.list("") == ["v/a"]
    storage.write("v/a", b"new", if_generation_match=None)
    storage.upload_folder(files, "v/1", last="one")
    assert storage.list("") == ["v/1/one", "v/a"]
    assert not list(storage.root.glob(f"v/{HIDDEN}*"))


def test_what_killed_uploads_left_is_removed_and_a_live_one_is_not_disturbed(
    storage: LocalStorage, tmp_path: Path
) -> None:
    import fcntl

    storage.upload_folder(_sources(tmp_path / "in", one="1"), "v/1", last="one")
    for name in ("2-dead", "3-live"):
        (storage.root / f"v/{HIDDEN}{name}").mkdir()
    with (storage.root / f"v/{HIDDEN}3-live" / "x").open("w"):
        live = os.open(storage.root / f"v/{HIDDEN}3-live", os.O_RDONLY)
        fcntl.flock(live, fcntl.LOCK_EX)
        storage.remove_unfinished("v", last="one")
        os.close(live)
    assert sorted(path.name for path in (storage.root / "v").iterdir()) == [f"{HIDDEN}3-live", "1"]


def test_a_storage_that_cannot_be_written_says_so(storage: LocalStorage) -> None:
    storage.root.mkdir()
    (storage.root / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        storage.write("file/below", b"x", if_generation_match=None)


def _write_forever(storage: LocalStorage) -> None:
    number = 0
    while True:
        number += 1
        storage.write("a", b"%d" % number * 50_000, if_generation_match=None)


def test_a_writer_killed_at_any_moment_leaves_a_whole_object_and_no_lock(storage: LocalStorage) -> None:
    context = multiprocessing.get_context("fork")
    for delay in (0.02, 0.031, 0.047, 0.06):
        worker = context.Process(target=_write_forever, args=(storage,))
        worker.start()
        time.sleep(delay)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        blob = storage.read("a")
        assert blob is None or blob.data == blob.data[: len(blob.data) // 50_000] * 50_000
        storage.write("b", b"free", if_generation_match=None)


def test_a_folder_that_is_not_there_is_refused_where_it_must_outlive_the_step(storage: LocalStorage) -> None:
    with pytest.raises(InputError, match="does not exist"):
        storage.refuse_absent()
    storage.root.mkdir()
    storage.refuse_absent()


@pytest.mark.parametrize("address", ["{}", "file://{}", "file://localhost{}"])
def test_a_folder_may_be_given_as_a_path_or_a_file_uri(tmp_path: Path, address: str) -> None:
    storage = open_storage(address.format(tmp_path / "new%20folder" if "://" in address else tmp_path / "new folder"))
    assert storage.uri == str(tmp_path / "new folder")
    assert not (tmp_path / "new folder").exists()
    assert storage.list("") == []


def test_a_file_is_no_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_storage(str(tmp_path / "file"))
