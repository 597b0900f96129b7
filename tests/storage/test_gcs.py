"""What a storage in a bucket promises beside: errors that say what is missing, and names that stay inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from google.cloud.storage import transfer_manager

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.storage import checksums, gcs, gcs_client, gcs_upload
from tunegate.storage.gcs import GcsStorage
from tunegate.storage.interface import Source
from tunegate.storage.open import open_storage


@pytest.fixture
def storage(gcs_bucket: str) -> GcsStorage:
    return GcsStorage(gcs_bucket.removeprefix("gs://"), "registry")


def _source(path: Path, data: bytes) -> Source:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Source(path, sha256_file(path))


def _put(storage: GcsStorage, name: str, data: bytes) -> None:
    gcs_client.open_bucket(storage.bucket).blob(name).upload_from_string(data)


@pytest.mark.parametrize(
    ("address", "uri"),
    [("gs://my-bucket", "gs://my-bucket"), ("gs://my-bucket/", "gs://my-bucket"), ("gs://b.c/a/b/", "gs://b.c/a/b")],
)
def test_an_address_in_the_cloud_comes_back_as_it_is_used(address: str, uri: str) -> None:
    assert open_storage(address).uri == uri


def test_a_folder_of_a_bucket_sees_its_own_keys_alone(storage: GcsStorage) -> None:
    _put(storage, "registry/a/b", b"1")
    _put(storage, "registry2/a", b"2")
    _put(storage, "registry/empty/", b"")  # what a web console makes for an empty folder
    assert storage.list("") == ["a/b"]
    assert GcsStorage(storage.bucket, "").list("registry2") == ["registry2/a"]


def test_a_large_file_arrives_and_is_checked_though_it_needs_many_requests(storage: GcsStorage, tmp_path: Path) -> None:
    files = {"big": _source(tmp_path / "big", os.urandom(9 << 20)), "last": _source(tmp_path / "last", b"x")}
    assert storage.upload_folder(files, "v/1", last="last")
    storage.download_folder("v/1", tmp_path / "out")
    assert sha256_file(tmp_path / "out/big") == files["big"].sha256


@pytest.mark.parametrize("size", [1, 9 << 20])
@pytest.mark.parametrize("last", ["two", "other"])
def test_bytes_that_change_while_they_are_sent_are_taken_back(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, last: str
) -> None:
    files = {"two": _source(tmp_path / "two", b"2" * size), last: _source(tmp_path / last, b"2" * size)}

    def then_tampered(given: Any) -> Any:
        found = gcs_upload.check_all(given)
        (tmp_path / "two").write_bytes(b"3" * size)
        return found

    monkeypatch.setattr(gcs, "check_all", then_tampered)
    with pytest.raises(ArtifactError, match="changed while it was uploaded"):
        storage.upload_folder(files, "v/1", last=last)
    assert storage.list("") == []


def _in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_upload, "IN_PARTS_ABOVE_BYTES", 1 << 20)
    monkeypatch.setattr(gcs_upload, "PART_BYTES", 1 << 18)


@pytest.mark.parametrize("parts", [5, 33, 70.5])
def test_a_file_in_parts_is_joined_in_the_bucket_and_leaves_no_part(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: float
) -> None:
    _in_small_parts(monkeypatch)
    files = {"big": _source(tmp_path / "big", os.urandom(int(parts * (1 << 18)))), "last": _source(tmp_path / "l", b"")}
    assert storage.upload_folder(files, "v/1", last="last")
    assert storage.hashes("v/1") == {name: source.sha256 for name, source in files.items()}
    assert storage.stamps("v/1").keys() == {"big", "last"}


def test_parts_that_a_killed_upload_left_are_not_sent_again(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_small_parts(monkeypatch)
    data = os.urandom(9 << 18)
    files = {"big": _source(tmp_path / "big", data), "last": _source(tmp_path / "last", b"x")}
    place = f"registry/v/1/{gcs_upload.part_start(files['big'].sha256)}"
    for number in (0, 1, 2, 3, 4, 8):
        _put(storage, f"{place}{number:05d}", data[number << 18 : (number + 1) << 18])
    _put(storage, f"{place}00004", b"damaged")
    _put(storage, f"registry/v/1/{gcs_upload.PARTS}/of-another/1-00000", b"left")
    sent: list[str] = []
    upload_many = transfer_manager.upload_many

    def counted(pairs: Any, **kwargs: Any) -> Any:
        sent.extend(blob.name.rpartition("-")[2] for _, blob in pairs)
        return upload_many(pairs, **kwargs)

    monkeypatch.setattr(transfer_manager, "upload_many", counted)
    assert storage.upload_folder(files, "v/1", last="last")
    assert sent == ["00004", "00005", "00006", "00007"]
    assert storage.hashes("v/1")["big"] == files["big"].sha256
    assert storage.stamps("v/1").keys() == {"big", "last"}


def test_bytes_that_a_sibling_holds_are_copied_in_the_bucket_and_damaged_ones_are_not(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: _source(tmp_path / name, name.encode() * 1000) for name in ("same", "damaged", "last")}
    assert storage.upload_folder(files, "v/1", last="last")
    damaged = gcs_client.open_bucket(storage.bucket).blob("registry/v/1/damaged")
    damaged.metadata = {gcs_upload.SHA256_METADATA: files["damaged"].sha256}
    damaged.upload_from_string(b"damaged")
    sent: list[str] = []
    upload_many = transfer_manager.upload_many
    monkeypatch.setattr(
        transfer_manager,
        "upload_many",
        lambda pairs, **kwargs: sent.extend(blob.name for _, blob in pairs) or upload_many(pairs, **kwargs),
    )
    assert storage.upload_folder(files, "v/2", last="last")
    assert sent == ["registry/v/2/damaged"]
    assert storage.hashes("v/2") == {name: source.sha256 for name, source in files.items()}


def test_a_folder_that_was_uploaded_anew_since_it_was_seen_stays(storage: GcsStorage, tmp_path: Path) -> None:
    files = {name: _source(tmp_path / name, name.encode()) for name in ("one", "last")}
    storage.upload_folder(files, "v/1", last="last")
    seen = storage.stamps("v/1")
    storage.remove_folder("v/1", first="last", stamps=seen)
    assert storage.stamps("v/1") == {}
    storage.upload_folder(files, "v/1", last="last")
    with pytest.raises(ConflictError):
        storage.remove_folder("v/1", first="last", stamps=seen)
    with pytest.raises(ConflictError):
        storage.remove_folder("v/1", first="last", stamps={"one": seen["one"]})
    assert storage.list("v") == ["v/1/last", "v/1/one"]


def test_what_unfinished_uploads_left_is_removed_and_finished_ones_stay(storage: GcsStorage) -> None:
    for key in ("v/1/last", "v/1/a", "v/2/a", "v/2/b/c", "w/3/a"):
        storage.write(key, b"x", if_generation_match=0)
    storage.remove_unfinished("v", last="last")
    assert storage.list("") == ["v/1/a", "v/1/last", "w/3/a"]


def test_an_object_whose_name_leaves_the_folder_is_not_written_there(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test server itself refuses such a name; Google's does not."""
    _put(storage, "registry/v/1/a", b"x")
    blobs = storage._blobs("v/1")
    monkeypatch.setattr(GcsStorage, "_blobs", lambda *_: {"v/1/../../outside": blobs["v/1/a"]})
    with pytest.raises(ArtifactError, match="not allowed"):
        storage.download_folder("v/1", tmp_path / "in" / "out")
    assert not (tmp_path / "outside").exists()


def test_a_missing_bucket_is_said_and_not_taken_for_an_empty_one(storage: GcsStorage) -> None:
    absent = open_storage("gs://no-such-bucket/registry")
    for use in (absent.refuse_absent, lambda: absent.read("a"), lambda: absent.exists("a"), lambda: absent.list("")):
        with pytest.raises(InputError, match="no-such-bucket cannot be used") as caught:
            use()
        assert "there is no such bucket" in caught.value.seen
    storage.refuse_absent()


def test_missing_credentials_are_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(InputError, match="no credentials for Google Cloud Storage") as caught:
        open_storage("gs://bucket/registry").refuse_absent()
    assert "absent.json" in caught.value.seen


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "access is forbidden (403"), (401, "credentials were refused"), (503, "the server failed (503")],
)
def test_a_refusal_says_what_to_do_and_repeats_no_session_or_token(status: int, said: str) -> None:
    from google.api_core.exceptions import from_http_status

    with pytest.raises(RunError) as caught, gcs_client.reported("a could not be written."):
        raise from_http_status(status, "POST https://storage/upload?upload_id=SECRET: no")
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_no_fault_of_the_input(status: int) -> None:
    """Whoever follows an alias tries again after a RunError, and refuses for good after an InputError."""
    from google.api_core.exceptions import from_http_status

    with pytest.raises(RunError), gcs_client.reported("The bucket cannot be used.", as_error=InputError):
        raise from_http_status(status, "GET https://storage/b")
    with pytest.raises(InputError), gcs_client.reported("The bucket cannot be used.", as_error=InputError):
        raise from_http_status(403, "GET https://storage/b")


def test_a_server_that_does_not_answer_is_said_by_name_alone() -> None:
    import requests

    with pytest.raises(RunError, match="could not be read") as caught, gcs_client.reported("a could not be read."):
        raise requests.ConnectionError("https://storage/upload?upload_id=SECRET")
    assert caught.value.seen == "no whole answer: ConnectionError"


def test_a_lost_race_says_which_generation_is_there(storage: GcsStorage) -> None:
    generation = storage.write("a", b"one", if_generation_match=0)
    with pytest.raises(ConflictError) as caught:
        storage.write("a", b"two", if_generation_match=generation + 1)
    assert caught.value.seen == f"generation {generation}"


def test_the_checksums_of_a_file_are_those_the_server_states(storage: GcsStorage, tmp_path: Path) -> None:
    source = _source(tmp_path / "a", os.urandom(5_000_000))
    _put(storage, "registry/a", (tmp_path / "a").read_bytes())
    stored = gcs_client.open_bucket(storage.bucket).get_blob("registry/a")
    for part_bytes in (0, 1 << 18, 5_000_000, 6_000_000):
        checked = checksums.check(source, part_bytes=part_bytes)
        assert gcs_upload.holds(stored, checked)
        assert len(checked.parts) == (-(-5_000_000 // part_bytes) if part_bytes else 0)
    assert not gcs_upload.holds(stored, checksums.check(_source(tmp_path / "b", b"b" * 5_000_000)))
