"""A network that breaks: the answer is right or an error that says so, and what was sent is not sent again."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import TunegateError
from tunegate.contracts.files import sha256_file
from tunegate.registry.aliases import current, history, promote, read_alias
from tunegate.registry.versions import has_version, publish, verify_version
from tunegate.storage import gcs_client, gcs_upload
from tunegate.storage.gcs_client import Patience
from tunegate.storage.interface import Source
from tunegate.storage.open import open_storage

_SPEC = importlib.util.spec_from_file_location("faulty_proxy", Path(__file__).with_name("faulty_proxy.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
faulty = sys.modules.setdefault("faulty_proxy", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(faulty)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of seconds."""
    monkeypatch.setattr(gcs_client, "PATIENCE", Patience(1.0, 3.0, 0.02))


@pytest.fixture
def faults() -> Any:
    return faulty.Faults()


@pytest.fixture
def behind(gcs_bucket: str, gcs_server: str, faults: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The address of a registry, and of the proxy in front of it as what the client takes for the server."""
    with faulty.faulty_proxy(gcs_server, faults) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy)
        gcs_client.open_bucket(gcs_bucket.removeprefix("gs://"))
        yield f"{gcs_bucket}/registry"


@pytest.mark.parametrize("rounds", [pytest.param(6), pytest.param(100, marks=pytest.mark.slow)], ids=["small", "full"])
def test_promotions_over_a_network_that_breaks_are_done_once_or_refused_and_a_retry_finishes(
    behind: str, faults: Any, gcs_server: str, parts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    storage, refused = open_storage(behind), 0
    proxy = os.environ["STORAGE_EMULATOR_HOST"]
    for number in range(rounds):
        made, attempt = parts(f"version {number}"), f"attempt-{number}"
        faults.choose = faulty.at_random(number, 0.12)
        for tried in range(30):
            if tried == 20:
                faults.choose = lambda method, path: ""
            try:
                version = publish(storage, made)
                promote(storage, read_alias(storage, "champion"), version, verdict="v", attempt=attempt)
                break
            except TunegateError as error:
                refused += 1
                assert error.remedy
        faults.choose = lambda method, path: ""
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
        record = current(storage, "champion")
        assert record is not None
        assert record.attempt == attempt
        assert has_version(storage, record.version)
        verify_version(storage, record.version)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy)
    assert len(history(storage, "champion")) == rounds
    assert faults.met
    told = ", ".join(f"{faults.met.count(name)} {name}" for name in faulty.FAULTS)
    print(f"\n{rounds} promotions, {len(faults.met)} faults ({told}), {refused} refused and tried again")


@pytest.mark.parametrize("fault", faulty.FAULTS)
def test_each_fault_of_a_download_gives_the_bytes_or_an_error(
    behind: str, faults: Any, parts: Callable[[str], Any], fault: str
) -> None:
    storage = open_storage(behind)
    version = publish(storage, parts("a"))
    left = [fault]
    faults.choose = lambda method, path: left.pop() if left and "adapter%2Fweights" in path else ""
    try:
        verify_version(storage, version)
    except TunegateError as error:
        assert fault in ("flipped request", "flipped answer")
        assert error.remedy
    assert faults.met == [fault]
    verify_version(storage, version)


def test_a_server_that_never_answers_is_given_up_within_the_deadline(behind: str, faults: Any) -> None:
    storage = open_storage(behind)
    faults.choose = lambda method, path: "503"
    with pytest.raises(TunegateError, match="could not be read") as caught:
        storage.read("aliases/champion.json")
    assert "try again" in caught.value.remedy
    assert len(faults.met) > 1


def test_an_upload_that_is_killed_and_resumed_sends_hardly_more_than_the_bytes(
    behind: str, faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file in parts and many small ones; the uploading process is killed after two thirds of the bytes."""
    monkeypatch.setattr(gcs_upload, "IN_PARTS_ABOVE_BYTES", 1 << 20)
    monkeypatch.setattr(gcs_upload, "PART_BYTES", 1 << 17)
    files, total = {}, 0
    for name, size in {"big": 12 << 20, **{f"small-{n}": 100_000 for n in range(40)}, "last": 100}.items():
        (tmp_path / name).write_bytes(os.urandom(size))
        files[name] = Source(tmp_path / name, sha256_file(tmp_path / name))
        total += size
    storage = open_storage(behind)
    upload = multiprocessing.get_context("fork").Process(
        target=storage.upload_folder, args=(files, "v/1"), kwargs={"last": "last"}
    )

    def kill_late(method: str, path: str) -> str:
        if faults.sent_bytes > total * 2 // 3 and alive:
            os.kill(alive.pop(), signal.SIGKILL)
        return ""

    alive: list[int] = []
    faults.choose = kill_late
    upload.start()
    alive.append(upload.pid or 0)
    upload.join()
    assert upload.exitcode == -signal.SIGKILL
    before = faults.sent_bytes
    faults.choose = lambda method, path: ""
    assert storage.upload_folder(files, "v/1", last="last")
    assert storage.hashes("v/1") == {name: source.sha256 for name, source in files.items()}
    print(f"\n{total:,} bytes; {before:,} sent before the kill, {faults.sent_bytes:,} in all")
    assert faults.sent_bytes <= 1.1 * total
