"""Training: what starts as the base, learns, and is saved so that PEFT itself can load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, OutputExistsError, RunError, SettingsError
from tunegate.contracts.files import sha256_file
from tunegate.contracts.manifest import verify
from tunegate.contracts.settings import parse_settings
from tunegate.models.chat import render
from tunegate.models.files import tokenizer_files
from tunegate.models.four_bit import four_bit
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.hold import Held
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings
from tunegate.train.step import _refuse_divergence, run
from tunegate.train.trainer import build_trainer

torch = pytest.importorskip("torch")

HELD = Held(gradient_checkpointing=False, optim="adamw_torch", reason="")


@pytest.fixture(scope="module")
def ids(tiny_base: Path) -> Any:
    return torch.tensor([load_tokenizer(tiny_base)("Give me weather of Paris for 3 days")["input_ids"]])


def test_the_validation_loss_falls_and_the_base_is_where_the_curve_starts(trained: dict[str, Path]) -> None:
    for adapter in trained.values():
        training = json.loads((adapter / "training.json").read_text("utf-8"))
        assert training["history"][0]["step"] == 0
        assert training["summary"]["validation_loss"] < 0.8 * training["summary"]["validation_loss_base"]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_step_zero_of_training_is_the_base_itself(
    method: str, tiny_base: Path, tiny_dataset: Path, ids: Any, tmp_path: Path
) -> None:
    settings = TrainSettings(method=method, r=4, max_length=256, gradient_checkpointing=False)
    base = load_base(tiny_base, settings)
    with torch.no_grad():
        expected = base(ids).logits.clone()
    trainer = build_trainer(base, load_tokenizer(tiny_base), tiny_dataset, settings, HELD, scratch=tmp_path)
    with torch.no_grad():
        assert torch.equal(trainer.model(ids).logits, expected)


def test_only_the_completion_carries_labels(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    settings = TrainSettings(method="lora", max_length=256)
    trainer = build_trainer(load_causal_lm(tiny_base), tokenizer, tiny_dataset, settings, HELD, scratch=tmp_path)
    rows = [json.loads(line) for line in (tiny_dataset / "train.jsonl").read_text("utf-8").splitlines()]
    for row, example in zip(rows, trainer.train_dataset, strict=True):
        labelled = [token for token in example["labels"] if token != -100]
        assert tokenizer.decode(labelled) == row["completion"][0]["content"] + "<|im_end|>\n"
        rendered = render(tokenizer, row["prompt"], row["completion"])  # what evaluate and quantize use
        assert example["input_ids"] == rendered.prompt_ids + rendered.completion_ids
        assert labelled == rendered.completion_ids


def test_an_end_of_turn_that_is_also_the_padding_token_keeps_its_label(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """A trainer that leaves out padding by its id would train the end of every answer away."""
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.pad_token = tokenizer.eos_token
    settings = TrainSettings(method="lora", max_length=256, per_device_train_batch_size=4)
    trainer = build_trainer(load_causal_lm(tiny_base), tokenizer, tiny_dataset, settings, HELD, scratch=tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert int((batch["labels"] == tokenizer.eos_token_id).sum()) == 4


def test_the_adapter_loads_in_plain_peft_and_lowers_the_loss_there(
    trained: dict[str, Path], tiny_base: Path, tiny_dataset: Path
) -> None:
    from peft import PeftModel

    tokenizer = load_tokenizer(tiny_base)
    row = json.loads((tiny_dataset / "validation.jsonl").read_text("utf-8").split("\n")[0])
    rendered = render(tokenizer, row["prompt"], row["completion"])
    ids = torch.tensor([rendered.prompt_ids + rendered.completion_ids])
    labels = torch.tensor([[-100] * len(rendered.prompt_ids) + rendered.completion_ids])
    model = PeftModel.from_pretrained(load_causal_lm(tiny_base), str(trained["lora"])).eval()
    with torch.no_grad():
        tuned = float(model(input_ids=ids, labels=labels).loss)
        with model.disable_adapter():
            base = float(model(input_ids=ids, labels=labels).loss)
    assert tuned < 0.8 * base


def test_all_linear_layers_but_the_head_are_adapted(trained: dict[str, Path]) -> None:
    config = json.loads((trained["lora"] / "adapter_config.json").read_text("utf-8"))
    kinds = {name.rpartition(".")[2] for name in config["target_modules"]}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_equal_runs_give_equal_bytes(
    trained: dict[str, Path], train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    again = run(train_settings("lora"), base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "again")
    assert again.content_digest == verify(trained["lora"]).content_digest


def test_the_tokenizer_and_chat_template_travel_byte_for_byte(trained: dict[str, Path], tiny_base: Path) -> None:
    for file in tokenizer_files(tiny_base):
        assert sha256_file(trained["qlora"] / file.name) == sha256_file(file)


def test_qlora_records_exactly_the_modules_that_were_four_bit(trained: dict[str, Path], tiny_base: Path) -> None:
    recorded = json.loads((trained["qlora"] / "training.json").read_text("utf-8"))["four_bit"]
    held = four_bit(load_base(tiny_base, TrainSettings(method="qlora")))
    assert held is not None
    assert tuple(recorded["modules"]) == held.modules
    assert (recorded["quant_type"], recorded["double_quant"], recorded["block_size"]) == ("nf4", True, 64)
    assert not any("lm_head" in module or "embed" in module for module in recorded["modules"])
    assert json.loads((trained["lora"] / "training.json").read_text("utf-8"))["four_bit"] is None


def test_nothing_is_pickled_and_no_path_of_this_machine_is_kept(trained: dict[str, Path], tiny_base: Path) -> None:
    names = {path.name for path in trained["lora"].iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    for name in ("adapter_config.json", "training.json", "manifest.json"):
        assert str(tiny_base) not in (trained["lora"] / name).read_text("utf-8")


def test_a_target_that_fits_no_module_is_refused_before_training(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(method="lora", target_modules=("q_proj", "k_prj"))
    with pytest.raises(SettingsError, match="target_modules") as caught:
        run(settings, base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "k_prj" in caught.value.seen and "k_proj" in caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_a_failed_run_and_names_the_step() -> None:
    log = [{"step": 1.0, "loss": 1.5}, {"step": 2.0, "loss": float("nan")}]
    with pytest.raises(RunError, match="diverged") as caught:
        _refuse_divergence(log, TrainSettings())
    assert "step 2 is nan" in caught.value.seen
    with pytest.raises(RunError, match="diverged"):
        _refuse_divergence([{"step": 0.0, "eval_loss": float("inf")}], TrainSettings())


def test_a_tied_output_head_is_no_target_because_it_could_not_be_merged(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(method="lora", target_modules=("q_proj", "lm_head"))
    with pytest.raises(SettingsError) as caught:
        run(settings, base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.seen == "lm_head"


@pytest.mark.parametrize(
    ("key", "value"), [("target_modules", []), ("r", -1), ("r", 0), ("lora_alpha", 0), ("method", "lroa"), ("r", "16")]
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(SettingsError):
        parse_settings(TrainSettings, {key: value}, where="recipe.train")


def test_an_output_made_by_other_settings_is_refused(
    trained: dict[str, Path], train_settings: Any, tiny_base: Path, tiny_dataset: Path
) -> None:
    with pytest.raises(OutputExistsError) as caught:
        run(train_settings("qlora"), base_model=tiny_base, dataset=tiny_dataset, output=trained["lora"])
    assert any("settings.method" in item for item in caught.value.items)


def test_a_data_set_changed_by_one_byte_is_refused(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_dataset, tmp_path / "copy")
    data = bytearray((copy / "train.jsonl").read_bytes())
    data[100] ^= 1
    (copy / "train.jsonl").write_bytes(bytes(data))
    with pytest.raises(ArtifactError) as caught:
        run(TrainSettings(), base_model=tiny_base, dataset=copy, output=tmp_path / "out")
    assert caught.value.items == ("train.jsonl: changed",)
