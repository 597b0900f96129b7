"""What every storage promises: whole objects, one winner, no half-written folder taken for whole."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError, OutputExistsError
from tunegate.contracts.files import sha256_file
from tunegate.storage.interface import HIDDEN, Blob, Source, Storage
from tunegate.storage.open import open_storage


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "registry"))
    return open_storage(request.getfixturevalue("gcs_bucket") + "/some/registry")


def _sources(folder: Path, **files: str) -> dict[str, Source]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: Source(folder / name, sha256_file(folder / name)) for name in files}


def test_an_object_comes_back_with_the_generation_it_was_written_at(storage: Storage) -> None:
    generation = storage.write("aliases/champion.json", b"one", if_generation_match=0)
    assert storage.read("aliases/champion.json") == Blob(b"one", generation)
    assert storage.read("aliases/other.json") is None
    assert storage.read("aliases") is None
    assert storage.exists("aliases/champion.json")
    assert not storage.exists("aliases")


def test_a_stale_writer_loses_and_changes_nothing(storage: Storage) -> None:
    first = storage.write("a", b"one", if_generation_match=0)
    second = storage.write("a", b"two", if_generation_match=first)
    for stale in (0, first, second + 1):
        with pytest.raises(ConflictError, match="moved by somebody else"):
            storage.write("a", b"three", if_generation_match=stale)
    assert storage.read("a") == Blob(b"two", second)
    with pytest.raises(ConflictError):
        storage.write("b", b"", if_generation_match=second)
    assert not storage.exists("b")


def test_deleting_what_somebody_moved_is_refused(storage: Storage) -> None:
    generation = storage.write("a", b"one", if_generation_match=0)
    storage.write("a", b"two", if_generation_match=generation)
    with pytest.raises(ConflictError):
        storage.delete("a", if_generation_match=generation)
    storage.delete("a")
    storage.delete("a")
    assert storage.read("a") is None


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "a//b", "a/../b", "", "a\\b", f"{HIDDEN}lock", "./a"])
def test_no_key_leaves_the_storage_or_touches_its_own_files(storage: Storage, key: str) -> None:
    for use in (storage.read, storage.exists, storage.delete):
        with pytest.raises(ArtifactError):
            use(key)
    with pytest.raises(ArtifactError):
        storage.write(key, b"x", if_generation_match=None)
    assert storage.list("") == []


def test_a_folder_arrives_whole_and_comes_back_equal(storage: Storage, tmp_path: Path) -> None:
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


def test_the_same_folder_again_is_verified_and_not_trusted(storage: Storage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2", last="3")
    assert storage.upload_folder(files, "v/1", last="last")
    assert not storage.upload_folder(files, "v/1", last="last")
    storage.write("v/1/two", b"4", if_generation_match=None)
    storage.write("v/1/three", b"5", if_generation_match=None)
    storage.delete("v/1/one")
    with pytest.raises(ArtifactError) as caught:
        storage.upload_folder(files, "v/1", last="last")
    assert caught.value.items == ("one: missing", "three: extra", "two: changed")


def test_bytes_that_changed_since_they_were_judged_do_not_arrive(storage: Storage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    (tmp_path / "in/two").write_text("tampered")
    with pytest.raises(ArtifactError, match="two changed while it was uploaded"):
        storage.upload_folder(files, "v/1", last="one")
    assert storage.list("") == []


def test_a_folder_is_removed_whole_and_its_neighbours_stay(storage: Storage, tmp_path: Path) -> None:
    files = _sources(tmp_path / "in", one="1", two="2")
    for prefix in ("v/1", "v/10"):
        storage.upload_folder({"one": files["one"], "part/two": files["two"]}, prefix, last="one")
    storage.remove_folder("v/1", first="one")
    storage.remove_folder("v/absent", first="one")
    assert storage.list("v") == ["v/10/one", "v/10/part/two"]


def _increment(storage: Storage, rounds: int) -> None:
    for _ in range(rounds):
        while True:
            blob = storage.read("counter")
            number, generation = (int(blob.data), blob.generation) if blob else (0, 0)
            try:
                storage.write("counter", b"%d" % (number + 1), if_generation_match=generation)
                break
            except ConflictError:
                continue


def test_no_update_is_lost_when_eight_processes_count_together(storage: Storage) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_increment, args=(storage, 10)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    blob = storage.read("counter")
    assert blob is not None
    assert blob.data == b"80"


def _upload(storage: Storage, files: dict[str, Source], done: object) -> None:
    done.put(storage.upload_folder(files, "v/1", last="one"))  # type: ignore[attr-defined]


def test_of_those_who_upload_the_same_folder_at_once_one_writes_and_all_succeed(
    storage: Storage, tmp_path: Path
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


def _upload_and_remove_forever(storage: Storage, files: dict[str, Source]) -> None:
    while True:
        storage.upload_folder(files, "v/1", last="last")
        storage.remove_folder("v/1", first="last")


def test_an_upload_killed_at_any_moment_is_whole_or_incomplete_and_the_next_one_finishes(
    storage: Storage, tmp_path: Path
) -> None:
    files = _sources(tmp_path / "in", one="1" * 300_000, two="2" * 300_000, last="3")
    context = multiprocessing.get_context("fork")
    for delay in (0.05, 0.071, 0.113, 0.15):
        worker = context.Process(target=_upload_and_remove_forever, args=(storage, files))
        worker.start()
        time.sleep(delay)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        complete = storage.exists("v/1/last")
        assert storage.upload_folder(files, "v/1", last="last") != complete  # which verifies what is complete
        assert storage.list("v") == ["v/1/last", "v/1/one", "v/1/two"]
        storage.remove_folder("v/1", first="last")


@pytest.mark.parametrize(
    "address", ["s3://bucket", "file://host/a", "", "gs://", "gs://B/a", "gs://bucket/../b", "gs://bucket//a"]
)
def test_an_address_that_cannot_be_used_is_refused_before_anything_is_asked(address: str) -> None:
    with pytest.raises(InputError, match="storage address"):
        open_storage(address)
