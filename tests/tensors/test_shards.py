"""Shards: what is streamed is a file that the safetensors library reads, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.contracts.errors import ArtifactError, ModelError
from tunegate.tensors.shards import (
    INDEX_NAME,
    ShardWriter,
    TensorSpec,
    model_specs,
    read_specs,
    row_blocks,
    shard_names,
)

torch = pytest.importorskip("torch")


def test_a_streamed_shard_is_read_back_by_the_library_bit_for_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "b": torch.randn(7, 5, dtype=torch.float32),
        "a": torch.randn(3, 4).to(torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "ids": torch.arange(9),
        "empty": torch.zeros(0, 4),
    }
    specs = {
        "b": TensorSpec("F32", (7, 5)), "a": TensorSpec("BF16", (3, 4)), "scalar": TensorSpec("F32", ()),
        "ids": TensorSpec("I64", (9,)), "empty": TensorSpec("F32", (0, 4)),
    }  # fmt: skip
    with ShardWriter(tmp_path / "x.safetensors", specs) as writer:
        writer.write(tensors["b"][:4])
        writer.write(tensors["b"][4:])
        for name in ("a", "scalar", "ids", "empty"):
            writer.write(tensors[name])
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert read_specs(tmp_path / "x.safetensors") == specs


def test_a_shard_that_is_short_of_a_row_cannot_be_closed_silently(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="announced"),
        ShardWriter(tmp_path / "x.safetensors", {"a": TensorSpec("F32", (2, 2))}) as writer,
    ):
        writer.write(torch.zeros(1, 2))


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_truncated_shard_is_refused_by_name(cut: int, tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        model_specs(copy)


def test_an_index_that_names_a_tensor_elsewhere_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    weight_map = dict.fromkeys(model_specs(copy), "model.safetensors") | {"ghost.weight": "model.safetensors"}
    (copy / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    with pytest.raises(ModelError) as caught:
        shard_names(copy)
    assert caught.value.items[0].startswith("ghost.weight")


def test_an_index_cannot_lead_out_of_the_folder(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    (copy / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}), "utf-8")
    with pytest.raises(ArtifactError, match="not allowed"):
        shard_names(copy)


@given(rows=st.integers(0, 300), row_bytes=st.integers(0, 50), limit=st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_row_blocks_cover_every_row_once_within_the_limit(rows: int, row_bytes: int, limit: int) -> None:
    blocks = list(row_blocks(rows, row_bytes, limit))
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(rows))
    assert all((b.stop - b.start) * row_bytes <= limit or b.stop - b.start == 1 for b in blocks)
