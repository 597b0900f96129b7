"""What a storage in a bucket promises beside: errors that say what is missing, and names that stay inside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.storage import gcs, gcs_client
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


def test_bytes_that_change_while_they_are_sent_are_taken_back(
    storage: GcsStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digests = _source(tmp_path / "two", b"2"), gcs._digests

    def then_tampered(path: Path) -> Any:
        found = digests(path)
        path.write_bytes(b"tampered")
        return found

    monkeypatch.setattr(gcs, "_digests", then_tampered)
    with pytest.raises(ArtifactError, match="changed while it was uploaded"):
        storage.upload_folder({"two": source}, "v/1", last="two")
    assert storage.list("") == []


def test_a_composed_object_has_no_md5_and_is_compared_by_its_bytes(storage: GcsStorage, tmp_path: Path) -> None:
    class Composed:
        md5_hash = None

        def open(self, mode: str, chunk_size: int) -> Any:
            return (tmp_path / "there").open(mode)

    source = _source(tmp_path / "here", b"bytes")
    (tmp_path / "there").write_bytes(b"bytes")
    assert gcs._holds(Composed(), source, "no md5")
    (tmp_path / "there").write_bytes(b"other")
    assert not gcs._holds(Composed(), source, "no md5")


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


def test_the_digests_of_a_file_are_those_the_server_states(storage: GcsStorage, tmp_path: Path) -> None:
    source = _source(tmp_path / "a", b"some bytes")
    _put(storage, "registry/a", b"some bytes")
    sha256, md5 = gcs._digests(source.path)
    assert sha256 == hashlib.sha256(b"some bytes").hexdigest()
    assert gcs_client.open_bucket(storage.bucket).get_blob("registry/a").md5_hash == md5
