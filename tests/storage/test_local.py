"""What a storage promises: whole objects, one winner, nothing outside its folder, nothing half-written in sight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError, OutputExistsError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.storage.interface import Blob, Source
from tunegate.storage.local import HIDDEN, LocalStorage
from tunegate.storage.open import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "registry")


def _sources(folder: Path, **files: str) -> dict[str, Source]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: Source(folder / name, sha256_file(folder / name)) for name in files}


def test_an_object_comes_back_with_the_generation_it_was_written_at(storage: LocalStorage) -> None:
    generation = storage.write("aliases/champion.json", b"one", if_generation_match=0)
    assert storage.read("aliases/champion.json") == Blob(b"one", generation)
    assert storage.read("aliases/other.json") is None
    assert storage.read("aliases") is None
    assert storage.exists("aliases/champion.json")
    assert not storage.exists("aliases")


def test_a_stale_writer_loses_and_changes_nothing(storage: LocalStorage) -> None:
    first = storage.write("a", b"one", if_generation_match=0)
    second = storage.write("a", b"two", if_generation_match=first)
    for stale in (0, first, second + 1):
        with pytest.raises(ConflictError, match="moved by somebody else"):
            storage.write("a", b"three", if_generation_match=stale)
    assert storage.read("a") == Blob(b"two", second)
    with pytest.raises(ConflictError):
        storage.write("b", b"", if_generation_match=second)
    assert not storage.exists("b")


def test_generations_only_grow_even_when_the_clock_goes_back(storage: LocalStorage) -> None:
    generation = storage.write("a", b"0", if_generation_match=0)
    future = time.time_ns() + 3_600_000_000_000
    os.utime(storage.root / "a", ns=(future, future))
    seen = [generation, future]
    for number in range(50):
        seen.append(storage.write("a", b"%d" % number, if_generation_match=None))
    assert seen == sorted(set(seen))


def test_deleting_what_somebody_moved_is_refused(storage: LocalStorage) -> None:
    generation = storage.write("a", b"one", if_generation_match=0)
    storage.write("a", b"two", if_generation_match=generation)
    with pytest.raises(ConflictError):
        storage.delete("a", if_generation_match=generation)
    storage.delete("a")
    storage.delete("a")
    assert storage.read("a") is None


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "a//b", "a/../b", "", "a\\b", f"{HIDDEN}lock", "./a"])
def test_no_key_leaves_the_folder_or_touches_the_storage_s_own_files(storage: LocalStorage, key: str) -> None:
    with pytest.raises(ArtifactError):
        storage.write(key, b"x", if_generation_match=None)
    with pytest.raises(ArtifactError):
        storage.read(key)
    assert not storage.root.exists()


def test_a_folder_arrives_whole_and_comes_back_equal(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", manifest="m", weights="w" * 100_000)
    named = {"part/weights": files["weights"], "manifest": files["manifest"]}
    assert storage.upload_folder(named, "v/1", last="manifest")
    assert storage.list("v") == ["v/1/manifest", "v/1/part/weights"]
    storage.download_folder("v/1", tmp_path / "out")
    assert (tmp_path / "out/part/weights").read_text() == "w" * 100_000
    with pytest.raises(OutputExistsError):
        storage.download_folder("v/1", tmp_path / "out")
    with pytest.raises(ArtifactError, match="nothing below v/2"):
        storage.download_folder("v/2", tmp_path / "other")


def test_the_same_folder_again_is_verified_and_not_trusted(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    assert storage.upload_folder(files, "v/1", last="one")
    assert not storage.upload_folder(files, "v/1", last="one")
    (storage.root / "v/1/two").write_text("3")
    (storage.root / "v/1/three").write_text("3")
    (storage.root / "v/1/one").unlink()
    with pytest.raises(ArtifactError) as caught:
        storage.upload_folder(files, "v/1", last="one")
    assert caught.value.items == ("one: missing", "three: extra", "two: changed")


def test_bytes_that_changed_since_they_were_judged_do_not_arrive(storage: LocalStorage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    (tmp_path / "in/two").write_text("tampered")
    with pytest.raises(ArtifactError, match="two changed while it was uploaded"):
        storage.upload_folder(files, "v/1", last="one")
    assert storage.list("") == []
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


def test_a_storage_that_cannot_be_written_says_so(storage: LocalStorage) -> None:
    storage.root.mkdir()
    (storage.root / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        storage.write("file/below", b"x", if_generation_match=None)


def _increment(storage: LocalStorage, rounds: int) -> None:
    for _ in range(rounds):
        while True:
            blob = storage.read("counter")
            number, generation = (int(blob.data), blob.generation) if blob else (0, 0)
            try:
                storage.write("counter", b"%d" % (number + 1), if_generation_match=generation)
                break
            except ConflictError:
                continue


def test_no_update_is_lost_when_eight_processes_count_together(storage: LocalStorage) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_increment, args=(storage, 20)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    blob = storage.read("counter")
    assert blob is not None
    assert blob.data == b"160"


def _upload(storage: LocalStorage, files: dict[str, Source], done: object) -> None:
    done.put(storage.upload_folder(files, "v/1", last="one"))  # type: ignore[attr-defined]


def test_of_those_who_upload_the_same_folder_at_once_one_writes_and_all_succeed(
    storage: LocalStorage, tmp_path: Path
) -> None:
    files = _sources(tmp_path / "in", one="1", two="2" * 1_000_000)
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    workers = [context.Process(target=_upload, args=(storage, files, done)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done.get(timeout=5) for _ in workers) == [False] * 5 + [True]
    assert storage.list("") == ["v/1/one", "v/1/two"]


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


@pytest.mark.parametrize("address", ["{}", "file://{}", "file://localhost{}"])
def test_a_folder_may_be_given_as_a_path_or_a_file_uri(tmp_path: Path, address: str) -> None:
    storage = open_storage(address.format(tmp_path / "new%20folder" if "://" in address else tmp_path / "new folder"))
    assert storage.uri == str(tmp_path / "new folder")
    assert not (tmp_path / "new folder").exists()
    assert storage.list("") == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gs://bucket/registry", "gs:// is not built yet"),
        ("s3://bucket", "give the registry as a folder"),
        ("file://host/a", "give the registry as a folder"),
        ("", "give the registry as a folder"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_before_anything_is_written(address: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_storage(address)


def test_a_file_is_no_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_storage(str(tmp_path / "file"))
