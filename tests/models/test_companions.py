"""Tokenizer, template and generation settings: the same bytes at every stage, and a refusal that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError
from tunegate.contracts.manifest import verify
from tunegate.models.companions import (
    companion_differences,
    companion_digests,
    copy_files,
    refuse_other_companions,
    tokenizer_digests,
)


def edited(source: Path, folder: Path, name: str) -> Path:
    """A copy as a plain folder, with a byte more in one file."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("manifest.json"))
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(" ")
    return folder


def test_weights_and_config_are_no_companions_and_the_rest_is(tiny_base: Path) -> None:
    found = companion_digests(tiny_base)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= found.keys()
    assert not {"config.json", "model.safetensors"} & found.keys()
    assert found.keys() - tokenizer_digests(tiny_base).keys() == {"generation_config.json"}


def test_each_difference_names_its_file() -> None:
    found, stated = {"a": "1" * 64, "b": "2" * 64}, {"b": "3" * 64, "c": "4" * 64}
    assert companion_differences(found, stated) == [
        "a: added",
        f"b: sha256 {'2' * 12}, was {'3' * 12}",
        "c: missing",
    ]
    assert companion_differences(found, found) == []


def test_nothing_is_compared_with_a_step_that_said_nothing(tiny_base: Path) -> None:
    refuse_other_companions(tiny_base, companion_digests(tiny_base), None, stated_by="an older document")


def test_a_copy_takes_the_place_of_what_a_library_wrote(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("written anew")
    copied = copy_files([tiny_base / "tokenizer.json"], tmp_path)
    assert copied == {"tokenizer.json": tokenizer_digests(tiny_base)["tokenizer.json"]}
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()


def test_every_stage_names_the_digests_of_the_base(
    tiny_base: Path, tiny_dataset: Path, trained: dict[str, Path], merged: Path
) -> None:
    base = companion_digests(tiny_base)
    profile, training, merging = (
        json.loads(path.read_text("utf-8"))["companions"]
        for path in (tiny_dataset / "profile.json", trained["qlora"] / "training.json", merged / "merge.json")
    )
    assert profile == tokenizer_digests(tiny_base) == tokenizer_digests(trained["qlora"])
    assert training == merging == base == companion_digests(merged)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_train_refuses_another_tokenizer_than_the_rows_were_checked_with(
    name: str, tiny_base: Path, tiny_dataset: Path, train_settings: Any, tmp_path: Path
) -> None:
    from tunegate.train.step import run

    other = edited(tiny_base, tmp_path / "base", name)
    with pytest.raises(ModelError, match=r"the data set's profile\.json names") as caught:
        run(train_settings("lora"), base_model=other, dataset=tiny_dataset, output=tmp_path / "out")
    assert [item.split(":")[0] for item in caught.value.items] == [name]
    assert not (tmp_path / "out").exists()


def test_merge_refuses_an_adapter_whose_template_changed_since_it_was_trained(
    tiny_base: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run

    adapter = edited(trained["lora"], tmp_path / "adapter", "chat_template.jinja")
    with pytest.raises(ModelError, match=r"training\.json names") as caught:
        run(MergeSettings(), base_model=tiny_base, adapter=adapter, output=tmp_path / "out")
    assert [item.split(":")[0] for item in caught.value.items] == ["chat_template.jinja"]
    assert not (tmp_path / "out").exists()


def test_quantize_refuses_a_merged_model_whose_template_changed_since_it_was_merged(
    merged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run

    model = edited(merged, tmp_path / "model", "generation_config.json")
    with pytest.raises(ModelError, match=r"merge\.json names") as caught:
        run(QuantizeSettings(scheme="FP8_DYNAMIC"), model=model, dataset=tiny_dataset, output=tmp_path / "out")
    assert [item.split(":")[0] for item in caught.value.items] == ["generation_config.json"]
    assert not (tmp_path / "out").exists()


def test_the_manifest_of_each_stage_holds_the_same_digests(
    tiny_base: Path, trained: dict[str, Path], merged: Path
) -> None:
    """What the gate compares."""
    for folder in (trained["qlora"], merged):
        entries = {entry.path: entry.sha256 for entry in verify(folder).files}
        assert tokenizer_digests(tiny_base).items() <= entries.items()
