"""What can go wrong on disk: each fault is refused by its name, and leaves nothing that passes for a merged model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import FullDevice

from tunegate.contracts.errors import ArtifactError, ModelError, RunError
from tunegate.contracts.manifest import verify
from tunegate.merge import weights
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.load import load_causal_lm
from tunegate.tensors.shards import INDEX_NAME

torch = pytest.importorskip("torch")

SETTINGS = MergeSettings(merge_base="original")


@pytest.fixture
def sharded(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base in several shards."""
    load_causal_lm(tiny_base).save_pretrained(str(tmp_path / "base"), max_shard_size="150KB")
    return tmp_path / "base"


@pytest.fixture
def adapter(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A LoRA adapter as a plain folder: it is not bound to a base by digests."""
    copy = shutil.copytree(trained["lora"], tmp_path / "adapter")
    for name in ("manifest.json", "training.json"):
        (copy / name).unlink()
    return copy


def merge(base: Path, adapter: Path, output: Path) -> None:
    run(SETTINGS, base_model=base, adapter=adapter, output=output)


def test_a_shard_that_was_cut_short_is_refused_by_name(sharded: Path, adapter: Path, tmp_path: Path) -> None:
    last = sorted(sharded.glob("*.safetensors"))[-1]
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(ModelError, match=last.name):
        merge(sharded, adapter, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_index_that_says_another_shard_is_refused_with_the_tensor(
    sharded: Path, adapter: Path, tmp_path: Path
) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text("utf-8"))
    tensor = sorted(index["weight_map"])[0]
    index["weight_map"][tensor] = next(
        name for name in index["weight_map"].values() if name != index["weight_map"][tensor]
    )
    (sharded / INDEX_NAME).write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelError, match="does not match the shards") as caught:
        merge(sharded, adapter, tmp_path / "out")
    assert tensor in caught.value.items[0]


@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_one_value_of_the_base_that_is_no_number_is_refused_whether_or_not_the_adapter_touches_it(
    tensor: str, value: float, tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[tensor].view(-1)[-1] = value
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=tensor):
        merge(base, adapter, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_adapter_whose_digest_differs_from_its_manifest_is_refused(
    trained: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained["lora"], tmp_path / "adapter")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["files"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match="its digests do not match"):
        merge(tiny_base, copy, tmp_path / "out")


def test_a_full_disk_says_so_and_leaves_nothing(
    tiny_base: Path, adapter: Path, tmp_path: Path, small_disk: None
) -> None:
    with pytest.raises(RunError, match="There is no room for") as caught:
        merge(tiny_base, adapter, tmp_path / "out")
    assert "GB are free" in caught.value.seen and "make room" in caught.value.remedy
    assert not list(tmp_path.glob("out*"))


def test_a_device_without_space_says_so_and_the_same_command_succeeds_after_room_was_made(
    tiny_base: Path, adapter: Path, full_device: FullDevice
) -> None:
    output = full_device.folder / "out"
    with pytest.raises(RunError, match="There is no room for") as caught:
        merge(tiny_base, adapter, output)
    assert "No space left" in caught.value.seen
    assert not list(full_device.folder.iterdir())
    full_device.make_room()
    merge(tiny_base, adapter, output)
    verify(output, kind="merged")


KILLED = """
import sys
from pathlib import Path
from tunegate.merge import block, weights
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
weights.BLOCK_BYTES = 1  # a row at a time: a long merge of a small model
base, adapter, output = map(Path, sys.argv[1:])
print("ready", flush=True)
run(MergeSettings(merge_base="original"), base_model=base, adapter=adapter, output=output)
"""


def test_a_merge_that_is_killed_at_any_moment_leaves_nothing_that_verifies_and_a_retry_succeeds(
    sharded: Path, adapter: Path, tmp_path: Path
) -> None:
    output, rng = tmp_path / "out", random.Random(4)
    killed = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(sharded), str(adapter), str(output)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 1.0))
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
        if output.exists():
            verify(output, kind="merged")  # whole, or not there
            shutil.rmtree(output)
        for left in tmp_path.glob("out*"):
            with pytest.raises(ArtifactError):
                verify(left)
    assert killed
    merge(sharded, adapter, output)
    verify(output, kind="merged")


def test_the_bytes_do_not_depend_on_how_many_threads_compute_them(
    sharded: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", 4096)
    digests: list[Any] = []
    for workers in (1, 2, 5):
        monkeypatch.setattr(weights, "worker_count", lambda workers=workers: workers)
        merge(sharded, adapter, tmp_path / f"out{workers}")
        digests.append(verify(tmp_path / f"out{workers}").content_digest)
    assert len(set(digests)) == 1


def test_a_snapshot_of_a_hub_merges_like_the_files_that_its_links_lead_to(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_base.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    merge(snapshot, adapter, tmp_path / "linked")
    merge(tiny_base, adapter, tmp_path / "plain")
    assert verify(tmp_path / "linked").content_digest == verify(tmp_path / "plain").content_digest
    assert not any(path.is_symlink() for path in (tmp_path / "linked").iterdir())
