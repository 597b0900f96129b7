"""Full fine-tuning: what is saved is the trained model, in the base's own layout, and nothing of the base is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError, RunError
from tunegate.contracts.files import sha256_file
from tunegate.contracts.manifest import verify
from tunegate.models.files import tokenizer_files
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.tensors.shards import INDEX_NAME, model_specs, shard_names
from tunegate.train.full_files import save_full
from tunegate.train.hold import Held
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings
from tunegate.train.step import run
from tunegate.train.trainer import build_trainer

torch = pytest.importorskip("torch")


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for shard in shard_names(folder) for name, tensor in load_file(folder / shard).items()}


def copied_base(base: Path, folder: Path, *, dtype: str = "float32", max_shard_size: str = "50GB") -> Path:
    """The tiny base again, in another dtype or in several shards."""
    load_causal_lm(base, dtype=dtype).save_pretrained(str(folder), max_shard_size=max_shard_size)
    for file in tokenizer_files(base):
        shutil.copyfile(file, folder / file.name)
    return folder


def nudged(base: Path, *, by: float = 0.01) -> Any:
    """The base as it is held for training, with every weight changed a little."""
    model = load_base(base, TrainSettings(method="full"))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


def test_the_tuned_model_loads_as_a_plain_model_and_its_loss_fell(trained_full: Path, tiny_base: Path) -> None:
    summary = json.loads((trained_full / "summary.json").read_text("utf-8"))
    assert summary["validation_loss"] < 0.8 * summary["validation_loss_base"]
    ids = torch.tensor([load_tokenizer(trained_full)("Give me weather of Paris for 3 days")["input_ids"]])
    with torch.no_grad():
        tuned, base = (load_causal_lm(folder)(ids).logits for folder in (trained_full, tiny_base))
    assert (tuned - base).abs().max() > 0.1


def test_names_shapes_dtypes_and_tied_weights_are_the_bases(trained_full: Path, tiny_base: Path) -> None:
    assert model_specs(trained_full) == model_specs(tiny_base)
    model = load_causal_lm(trained_full)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert "lm_head.weight" not in model_specs(trained_full)


def test_the_share_of_changed_weights_is_that_of_the_files(trained_full: Path, tiny_base: Path) -> None:
    before, after = stored(tiny_base), stored(trained_full)
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    summary = json.loads((trained_full / "summary.json").read_text("utf-8"))
    assert summary["changed_share"] == pytest.approx(changed / sum(t.numel() for t in before.values()))
    assert summary["changed_share"] > 0.5


def test_configuration_tokenizer_and_generation_settings_are_the_bases_bytes(
    trained_full: Path, tiny_base: Path
) -> None:
    files = [*tokenizer_files(tiny_base), tiny_base / "config.json", tiny_base / "generation_config.json"]
    for file in files:
        assert sha256_file(trained_full / file.name) == sha256_file(file)
    kept = {"manifest.json", "training.json", "timings.json", "summary.json", "page.html", "model.safetensors"}
    assert {path.name for path in trained_full.iterdir()} == kept | {file.name for file in files}


def test_the_artifact_says_that_it_is_a_whole_model(trained_full: Path) -> None:
    assert verify(trained_full, kind="adapter").settings["method"] == "full"
    training = json.loads((trained_full / "training.json").read_text("utf-8"))
    assert (training["method"], training["four_bit"], training.get("ranks")) == ("full", None, None)


def test_equal_runs_give_equal_bytes(
    trained_full: Path, train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    again = run(train_settings("full"), base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "again")
    assert again.content_digest == verify(trained_full).content_digest


def test_training_holds_float32_and_the_file_the_dtype_of_the_base_cast_once(tiny_base: Path, tmp_path: Path) -> None:
    base = copied_base(tiny_base, tmp_path / "base", dtype="bfloat16")
    model = nudged(base)
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {p.dtype for p in held.values()} == {torch.float32}
    (tmp_path / "out").mkdir()
    save_full(model, tmp_path / "out", base_model=base)
    written = stored(tmp_path / "out")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    for name, parameter in held.items():
        assert torch.equal(written[name], parameter.to(torch.bfloat16)), name


def test_the_shards_are_those_of_the_base(tiny_base: Path, tmp_path: Path) -> None:
    base = copied_base(tiny_base, tmp_path / "base", max_shard_size="150KB")
    model = nudged(base)
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    (tmp_path / "out").mkdir()
    save_full(model, tmp_path / "out", base_model=base)
    assert shard_names(tmp_path / "out") == shard_names(base) and len(shard_names(base)) > 1
    maps = [json.loads((folder / INDEX_NAME).read_text("utf-8"))["weight_map"] for folder in (base, tmp_path / "out")]
    assert maps[0] == maps[1]
    written = stored(tmp_path / "out")
    assert written.keys() == held.keys()
    assert all(torch.equal(written[name], held[name]) for name in held)


def test_a_head_that_the_base_stores_beside_its_tied_embedding_is_stored_again(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = stored(base)
    extra = {"lm_head.weight": weights["model.embed_tokens.weight"].clone(), "model.unused": torch.arange(4)}
    save_file(weights | extra, base / "model.safetensors")
    model = nudged(base)
    (tmp_path / "out").mkdir()
    save_full(model, tmp_path / "out", base_model=base)
    written = stored(tmp_path / "out")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert torch.equal(written["lm_head.weight"], model.get_input_embeddings().weight)
    assert torch.equal(written["model.unused"], torch.arange(4))  # what the architecture does not load is kept


def test_an_untied_head_is_trained_and_kept_apart(make_base: Any, tmp_path: Path) -> None:
    base = make_base(tied=False)
    model = nudged(base)
    (tmp_path / "out").mkdir()
    save_full(model, tmp_path / "out", base_model=base)
    written = stored(tmp_path / "out")
    assert torch.equal(written["lm_head.weight"], model.get_output_embeddings().weight)
    assert not torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda parameter: parameter, "changed no weight"),
        (lambda parameter: parameter * (1 + 1e-4), "changed no weight"),  # below bfloat16's precision
        (lambda parameter: parameter * float("nan"), "not finite"),
    ],
    ids=["nothing", "less than the dtype holds", "no number"],
)
def test_a_run_without_a_usable_change_fails(change: Any, failed: str, tiny_base: Path, tmp_path: Path) -> None:
    base = copied_base(tiny_base, tmp_path / "base", dtype="bfloat16")
    model = load_base(base, TrainSettings(method="full"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(change(parameter))
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=failed):
        save_full(model, tmp_path / "out", base_model=base)


def test_a_model_that_got_another_vocabulary_while_it_trained_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    model = nudged(tiny_base)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="no longer has the tensors") as caught:
        save_full(model, tmp_path / "out", base_model=tiny_base)
    assert "model.embed_tokens.weight" in caught.value.items[0]


def test_a_quantized_base_is_refused_before_it_is_loaded(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq"}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="is quantized") as caught:
        run(TrainSettings(method="full"), base_model=base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "gptq" in caught.value.seen


def test_every_weight_of_the_base_is_trained(trained_full: Path, tiny_base: Path) -> None:
    before, after = stored(tiny_base), stored(trained_full)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    summary = json.loads((trained_full / "summary.json").read_text("utf-8"))
    assert summary["trainable_parameters"] == sum(tensor.numel() for tensor in before.values())


def test_plain_transformers_computes_what_the_trained_model_did(
    train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    settings = train_settings("full", num_train_epochs=0.4)
    tokenizer, held = load_tokenizer(tiny_base), Held(False, "adamw_torch", "")
    model = load_base(tiny_base, settings)
    trainer = build_trainer(model, tokenizer, tiny_dataset, settings, held, scratch=tmp_path / "scratch")
    trainer.train()
    (tmp_path / "out").mkdir()
    save_full(trainer.model, tmp_path / "out", base_model=tiny_base)
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype="float32").eval()
    ids = torch.tensor([tokenizer("Give me weather of Paris for 3 days")["input_ids"]])
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
        assert (load_causal_lm(tiny_base)(ids).logits - expected).abs().max() > 0.1


def test_a_run_that_could_change_nothing_fails_and_leaves_nothing(
    train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = train_settings("full", num_train_epochs=0.2, learning_rate=1e-45)
    with pytest.raises(RunError, match="changed no weight") as caught:
        run(settings, base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "learning_rate" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_its_page_leaves_out_the_settings_of_adapters(trained_full: Path) -> None:
    page = (trained_full / "page.html").read_text("utf-8")
    assert "learning_rate" in page
    assert "lora_alpha" not in page
