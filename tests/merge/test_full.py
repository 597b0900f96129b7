"""A fully tuned model passes through merge: verified against its base, and not changed by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import AdapterError, ArtifactError
from tunegate.contracts.files import sha256_file
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.files import tokenizer_files
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.tensors.shards import model_specs

torch = pytest.importorskip("torch")


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def unverified(tuned: Path, folder: Path) -> Path:
    """A copy that is a plain folder, so that what is checked is not the manifest."""
    shutil.copytree(tuned, folder)
    (folder / MANIFEST_NAME).unlink()
    return folder


def edit_tensors(tuned: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import save_file

    save_file(change(stored(tuned)), tuned / "model.safetensors")


@pytest.fixture(scope="module")
def merged_full(trained_full: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("merged_full") / "merged"
    run(MergeSettings(), base_model=tiny_base, adapter=trained_full, output=output)
    return output


def test_the_merged_model_is_the_tuned_one_bit_for_bit(merged_full: Path, trained_full: Path, tiny_base: Path) -> None:
    assert sha256_file(merged_full / "model.safetensors") == sha256_file(trained_full / "model.safetensors")
    ids = torch.tensor([load_tokenizer(tiny_base)("Give me weather of Paris for 3 days")["input_ids"]])
    with torch.no_grad():
        merged, tuned, base = (load_causal_lm(f)(ids).logits for f in (merged_full, trained_full, tiny_base))
    assert torch.equal(merged, tuned)
    assert (merged - base).abs().max() > 0.1


def test_it_is_a_whole_merged_artifact_that_names_what_it_came_from(
    merged_full: Path, trained_full: Path, tiny_base: Path
) -> None:
    manifest = verify(merged_full, kind="merged")
    assert manifest.parents["adapter"] == verify(trained_full).content_digest
    assert manifest.parents["base"] == verify(trained_full).parents["base"]
    for file in [*tokenizer_files(tiny_base), tiny_base / "config.json", tiny_base / "generation_config.json"]:
        assert sha256_file(merged_full / file.name) == sha256_file(file)
    assert model_specs(merged_full) == model_specs(tiny_base)


def test_it_says_that_there_was_no_adapter_and_how_much_changed(
    merged_full: Path, trained_full: Path, tiny_base: Path
) -> None:
    report = json.loads((merged_full / "merge.json").read_text("utf-8"))
    summary = json.loads((merged_full / "summary.json").read_text("utf-8"))
    assert (report["merge_base"], report["round_tripped_modules"]) == ("full", 0)
    before, after = stored(tiny_base), stored(trained_full)
    found = {tensor["weight"]: tensor for tensor in report["tensors"]}
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        difference = (after[name].double() - before[name].double()).norm() / before[name].double().norm()
        assert tensor["relative_change"] == pytest.approx(float(difference), rel=1e-6, abs=1e-8)
        assert tensor["changed"] == int((after[name] != before[name]).sum())
    changed = sum(tensor["changed"] for tensor in found.values())
    assert summary["changed_share"] == pytest.approx(changed / sum(t.numel() for t in before.values()))
    page = (merged_full / "page.html").read_text("utf-8")
    assert "model.embed_tokens.weight" in page and "full fine-tuning" in page


def test_another_dtype_is_cast_to_once(trained_full: Path, tiny_base: Path, tmp_path: Path) -> None:
    run(MergeSettings(dtype="bfloat16"), base_model=tiny_base, adapter=trained_full, output=tmp_path / "out")
    tuned = stored(trained_full)
    written = stored(tmp_path / "out")
    assert all(torch.equal(written[name], tensor.to(torch.bfloat16)) for name, tensor in tuned.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def test_a_model_tuned_from_other_bytes_is_refused(trained_full: Path, make_base: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="trained on another base"):
        run(MergeSettings(), base_model=make_base(seed=5), adapter=trained_full, output=tmp_path / "out")


def test_one_changed_byte_is_refused(trained_full: Path, tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained_full, tmp_path / "tuned")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtifactError) as caught:
        run(MergeSettings(), base_model=tiny_base, adapter=copy, output=tmp_path / "out")
    assert caught.value.items == ("model.safetensors: changed",)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "failed"),
    [
        (lambda t, b: {name: tensor for name, tensor in t.items() if name != NORM}, "not one of this base"),
        (lambda t, b: {**t, "model.stray": torch.ones(1)}, "not one of this base"),
        (lambda t, b: {**t, NORM: t[NORM][:-1].clone()}, "not one of this base"),
        (lambda t, b: b, "is its base"),
    ],
    ids=["a tensor is missing", "a tensor too many", "another shape", "nothing changed"],
)
def test_what_is_no_tuned_model_of_this_base_is_refused_and_nothing_is_written(
    damage: Callable[[Any, Any], dict[str, Any]], failed: str, trained_full: Path, tiny_base: Path, tmp_path: Path
) -> None:
    tuned = unverified(trained_full, tmp_path / "tuned")
    edit_tensors(tuned, lambda tensors: damage(tensors, stored(tiny_base)))
    with pytest.raises(AdapterError, match=failed):
        run(MergeSettings(), base_model=tiny_base, adapter=tuned, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned"]


def test_a_tuned_model_with_another_vocabulary_is_refused(trained_full: Path, tiny_base: Path, tmp_path: Path) -> None:
    tuned = unverified(trained_full, tmp_path / "tuned")
    document = json.loads((tuned / "tokenizer.json").read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tuned / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(AdapterError, match="vocabulary"):
        run(MergeSettings(), base_model=tiny_base, adapter=tuned, output=tmp_path / "out")
