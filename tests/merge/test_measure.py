"""``merge_base: measure``: the loss decides, dequantized in doubt, on rows that were not trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.contracts.manifest import MANIFEST_NAME, input_digest, verify
from tunegate.merge import measure
from tunegate.merge.base_choice import choose_base
from tunegate.merge.settings import MergeSettings
from tunegate.merge.step import run
from tunegate.models.chat import render
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings

torch = pytest.importorskip("torch")

MEASURE = MergeSettings(merge_base="measure")


def test_the_bound_is_scipys_paired_t() -> None:
    from scipy.stats import ttest_rel

    generator = torch.Generator().manual_seed(0)
    dequantized = (1.0 + 0.1 * torch.randn(12, generator=generator)).tolist()
    original = (0.9 + 0.1 * torch.randn(12, generator=generator)).tolist()
    choice = choose_base(dequantized, original)
    greater = ttest_rel(dequantized, original, alternative="greater")
    less = ttest_rel(dequantized, original, alternative="less")
    assert choice.lower == pytest.approx(greater.confidence_interval(0.95).low)
    assert choice.upper == pytest.approx(less.confidence_interval(0.95).high)
    assert choice.chosen == ("original" if greater.pvalue < 0.05 else "dequantized")


@pytest.mark.parametrize(
    ("differences", "chosen"),
    [
        ([0.2, 0.3, 0.25, 0.2], "original"),
        ([-0.2, -0.3, -0.25, -0.2], "dequantized"),
        ([0.9, -0.7, 0.1, 0.0], "dequantized"),  # better on the mean, by chance
        ([0.0, 0.0, 0.0], "dequantized"),
        ([5.0], "dequantized"),
    ],
    ids=["original is better", "dequantized is better", "chance", "tie", "one row"],
)
def test_original_must_show_that_it_is_better(differences: list[float], chosen: str) -> None:
    assert choose_base([1.0 + d for d in differences], [1.0] * len(differences)).chosen == chosen


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with more validation rows: those of its evaluation side, which no adapter here has seen."""

    def build(folder: Path) -> None:
        shutil.copytree(tiny_dataset, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        shutil.copyfile(folder / "evaluation.jsonl", folder / "validation.jsonl")

    output = tmp_path_factory.mktemp("rows") / "dataset"
    produce(output, kind="dataset", parents={}, settings={}, build=build)
    return output


def adapter_of(source: Path, dataset: Path, output: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A trained adapter as if it had been trained on ``dataset``, with some of its ``training.json`` changed."""

    def build(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        training = json.loads((folder / "training.json").read_text("utf-8"))
        change(training)
        (folder / "training.json").write_text(json.dumps(training), "utf-8")

    parents = {**verify(source).parents, "dataset": verify(dataset).content_digest}
    produce(output, kind="adapter", parents=parents, settings={}, build=build)
    return output


def losses(model: Any, base: Path, dataset: Path) -> dict[str, float]:
    """What transformers computes for each row's answer."""
    tokenizer, found = load_tokenizer(base), {}
    for line in (dataset / "validation.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rendered = render(tokenizer, row["prompt"], row["completion"])
        ids = torch.tensor([rendered.prompt_ids + rendered.completion_ids])
        labels = ids.clone()
        labels[:, : len(rendered.prompt_ids)] = -100
        with torch.no_grad():
            found[row["id"]] = float(model(input_ids=ids, labels=labels).loss)
    return found


def measured(adapter: Path, base: Path, dataset: Path, output: Path) -> dict[str, Any]:
    run(MEASURE, base_model=base, adapter=adapter, dataset=dataset, output=output)
    document: dict[str, Any] = json.loads((output / "merge.json").read_text("utf-8"))
    return document


def test_an_adapter_that_learned_on_the_original_weights_goes_to_them_though_they_were_said_to_be_in_4_bits(
    trained: dict[str, Path], tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """A merge that always took the dequantized base, or judged by the divergence from NF4, would lose this one."""
    held = json.loads((trained["qlora"] / "training.json").read_text("utf-8"))["four_bit"]
    adapter = adapter_of(trained["lora"], dataset, tmp_path / "adapter", lambda t: t.update(four_bit=held))
    document = measured(adapter, tiny_base, dataset, tmp_path / "out")
    found = document["measured"]
    assert (document["merge_base"], document["decided_by"], found["chosen"]) == ("original", "measurement", "original")
    assert found["lower"] > 0
    assert found["mean_kl_from_adapter"]["dequantized"] < found["mean_kl_from_adapter"]["original"]
    assert document["round_tripped_modules"] == 0
    run(MergeSettings(merge_base="original"), base_model=tiny_base, adapter=adapter, output=tmp_path / "set")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "set/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def measured_qlora(
    trained: dict[str, Path], tiny_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("measured")
    adapter = adapter_of(trained["qlora"], dataset, place / "adapter", lambda training: None)
    measured(adapter, tiny_base, dataset, place / "out")
    return place


def test_an_adapter_that_learned_on_nf4_stays_on_it(measured_qlora: Path, merged: Path, dataset: Path) -> None:
    output = measured_qlora / "out"
    document = json.loads((output / "merge.json").read_text("utf-8"))
    found = document["measured"]
    assert (document["merge_base"], found["chosen"]) == ("dequantized", "dequantized")
    assert found["upper"] < 0
    assert (output / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    manifest = verify(output, kind="merged")
    rows = next(entry for entry in verify(dataset).files if entry.path == "validation.jsonl")
    assert manifest.parents["validation_rows"] == rows.sha256
    page = (output / "page.html").read_text("utf-8")
    assert "Which base" in page
    assert "original is better by" in page


def test_both_losses_are_those_of_pefts_adapter_on_bitsandbytes_and_on_the_original_base(
    measured_qlora: Path, tiny_base: Path, dataset: Path
) -> None:
    from peft import PeftModel

    found = json.loads((measured_qlora / "out/merge.json").read_text("utf-8"))["measured"]
    bases = {
        "original": load_causal_lm(tiny_base),
        "dequantized": load_base(tiny_base, TrainSettings(method="qlora")),
    }
    for kind, base in bases.items():
        expected = losses(PeftModel.from_pretrained(base, str(measured_qlora / "adapter")).eval(), tiny_base, dataset)
        assert {row["row_id"]: row[kind] for row in found["row_losses"]} == pytest.approx(expected, abs=1e-4)
        assert found["loss"][kind] == pytest.approx(sum(expected.values()) / len(expected), abs=1e-4)
    assert found["mean_kl_from_adapter"]["dequantized"] < 1e-6  # the same model but for rounding


def test_two_bases_that_are_one_are_a_tie_and_go_to_dequantized(
    trained: dict[str, Path], tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Weights that came out of NF4 go through it unchanged where scales are not quantized too."""
    from bitsandbytes import functional
    from safetensors.torch import load_file, save_file

    held = json.loads((trained["qlora"] / "training.json").read_text("utf-8"))["four_bit"] | {"double_quant": False}
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    for module in held["modules"]:
        packed, state = functional.quantize_4bit(tensors[f"{module}.weight"], blocksize=64, quant_type="nf4")
        tensors[f"{module}.weight"] = functional.dequantize_4bit(packed, state)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    told = {"four_bit": held, "base_digest": input_digest(base)}
    adapter = adapter_of(trained["lora"], dataset, tmp_path / "adapter", lambda t: t.update(told))
    found = measured(adapter, base, dataset, tmp_path / "out")["measured"]
    assert (found["difference"], found["chosen"]) == (0.0, "dequantized")


def test_an_adapter_of_a_16_bit_base_has_nothing_to_measure_and_says_so(
    trained: dict[str, Path], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(MEASURE, base_model=tiny_base, adapter=trained["lora"], output=tmp_path / "out")
    document = json.loads((tmp_path / "out/merge.json").read_text("utf-8"))
    assert (document["merge_base"], document["measured"]) == ("original", None)
    assert "nothing to measure" in document["decided_by"]
    assert "nothing to measure" in capsys.readouterr().out


def test_rows_that_may_have_been_trained_on_do_not_judge(
    trained: dict[str, Path], tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="may have been trained on"):
        run(MEASURE, base_model=tiny_base, adapter=trained["qlora"], dataset=dataset, output=tmp_path / "out")
    with pytest.raises(SettingsError, match="needs the data set"):
        run(MEASURE, base_model=tiny_base, adapter=trained["qlora"], output=tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_measurement_leaves_nothing_and_a_killed_one_is_made_anew(
    measured_qlora: Path, tiny_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    adapter, output = measured_qlora / "adapter", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(measure, "choose_base", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(MEASURE, base_model=tiny_base, adapter=adapter, dataset=dataset, output=output)
    assert not any(tmp_path.iterdir())
    left = tmp_path / "out.partial/.measure-abc/original"  # as SIGKILL leaves it
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    again = run(MEASURE, base_model=tiny_base, adapter=adapter, dataset=dataset, output=output)
    assert again.content_digest == verify(measured_qlora / "out").content_digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
