"""The loss that is trained on must be the model's own, however it is computed; validation must survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import DataError, RunError, SettingsError
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.hold import Held
from tunegate.train.settings import TrainSettings
from tunegate.train.trainer import build_trainer, refuse_many_devices, refuse_missing_trackers

torch = pytest.importorskip("torch")


@pytest.fixture
def make_trainer(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> Any:
    def make(*, checkpointing: bool = False, **settings: Any) -> Any:
        plain = {"method": "lora", "r": 4, "max_length": 256, "per_device_train_batch_size": 4}
        held = Held(checkpointing, "adamw_torch", "")
        torch.manual_seed(0)
        trainer = build_trainer(
            load_causal_lm(tiny_base), load_tokenizer(tiny_base), tiny_dataset, TrainSettings(**{**plain, **settings}),
            held, scratch=tmp_path,
        )  # fmt: skip
        for name, parameter in trainer.model.named_parameters():  # so that the adapter does something
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return trainer

    return make


def own_loss(trainer: Any, rows: list[dict[str, Any]]) -> tuple[Any, int]:
    """The sum of the cross-entropies of the labelled tokens, row by row, by transformers' own forward."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        found = trainer.model(input_ids=torch.tensor([row["input_ids"]]), labels=labels)
        count = int((labels[:, 1:] != -100).sum())
        total, tokens = total + found.loss * count, tokens + count
    return total, tokens


def gradients(trainer: Any) -> dict[str, Any]:
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_loss_and_gradients_of_a_batch_are_those_of_its_rows_alone(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, checkpointing: bool, tiled: bool
) -> None:
    if tiled:
        monkeypatch.setattr("tunegate.train.tune_trainer.AT_ONCE_BYTES", 0)  # TRL's fused head
    trainer = make_trainer(checkpointing=checkpointing)
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss, tokens = own_loss(trainer, rows)
    (loss / tokens).backward()
    expected = gradients(trainer)
    batch = trainer.data_collator(rows)
    ours = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(tokens))
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(loss.detach()) / tokens, rel=1e-5)
    found = gradients(trainer)
    assert found.keys() == expected.keys() != set()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6, rtol=1e-4), name


def test_no_token_of_a_batch_is_padding(make_trainer: Any) -> None:
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    assert "attention_mask" not in batch
    lengths = {len(row["input_ids"]) for row in trainer.train_dataset}
    assert set(batch["cu_seq_lens_q"].diff().tolist()) <= lengths


@pytest.mark.parametrize("rows_at_once", [1, 3, 8])
def test_the_validation_loss_is_per_token_however_rows_are_batched(make_trainer: Any, rows_at_once: int) -> None:
    trainer = make_trainer(per_device_eval_batch_size=rows_at_once)
    with torch.no_grad():
        total, tokens = own_loss(trainer, list(trainer.eval_dataset))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(total) / tokens, rel=1e-5)


def test_validation_halves_its_batch_when_memory_runs_out_and_says_so(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(per_device_eval_batch_size=8)
    expected = trainer.evaluate()["eval_loss"]
    plain = trainer._labelled_loss

    def limited(model: Any, inputs: dict[str, Any], divisor: Any) -> Any:
        if len(inputs["cu_seq_lens_q"]) - 1 > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return plain(model, inputs, divisor)

    monkeypatch.setattr(trainer, "_labelled_loss", limited)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.args.per_device_eval_batch_size == 2
    said = capsys.readouterr().out
    assert "8 rows at once: going on with 4" in said and "4 rows at once: going on with 2" in said


def test_a_single_validation_row_that_does_not_fit_is_a_clear_error(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(per_device_eval_batch_size=2)

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer, "_labelled_loss", never)
    with pytest.raises(RunError, match="out of memory") as caught:
        trainer.evaluate()
    assert "max_length" in caught.value.remedy


def test_other_errors_of_validation_are_not_taken_for_memory(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer, "_labelled_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.evaluate()


def test_rows_are_cut_to_max_length_and_lost_labels_are_refused(make_trainer: Any) -> None:
    longest = max(len(row["input_ids"]) for row in make_trainer().train_dataset)
    cut = make_trainer(max_length=longest - 1)
    assert max(len(row["input_ids"]) for row in cut.train_dataset) == longest - 1
    with pytest.raises(DataError, match="lose every label"):
        make_trainer(max_length=8)


def test_accumulated_steps_train_as_one_large_batch_does(make_trainer: Any) -> None:
    """Batches are divided by the labels of the whole step, not by those of each part."""
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps, num_train_epochs=0.5, warmup_steps=0
        )
        trainer.train()
        found.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=2e-4), name


def test_the_throughput_of_each_step_is_logged(make_trainer: Any) -> None:
    trainer = make_trainer(num_train_epochs=0.5)
    trainer.train()
    rates = [entry["tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates
    assert all(rate > 0 for rate in rates)


def test_tensorboard_gets_the_curves_when_it_is_asked_for(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    settings = {"report_to": ("tensorboard",), "num_train_epochs": 0.3}
    refuse_missing_trackers(TrainSettings(**settings))
    make_trainer(**settings).train()
    events = list((tmp_path / "board").rglob("events.*"))
    assert events
    assert b"train/loss" in events[0].read_bytes()


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_cannot_be_reported_to_is_refused_before_training(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SettingsError, match=r"report_to|reported to"):
        refuse_missing_trackers(TrainSettings(report_to=(tracker,)))


def test_the_address_of_a_tracker_is_never_shown_for_it_may_hold_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@tracker")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        refuse_missing_trackers(TrainSettings(report_to=("mlflow",)))
    assert "hunter2" not in str(caught.value)


def test_more_than_one_process_is_refused_rather_than_trained_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="one device"):
        refuse_many_devices()


def test_a_checkpoint_keeps_its_optimizer_where_the_memory_plan_would_choose_another(
    make_trainer: Any, tmp_path: Path
) -> None:
    first = make_trainer(num_train_epochs=0.5)
    first.train()
    first._save_checkpoint(first.model, None)
    folder = tmp_path / f"checkpoint-{first.state.global_step}"
    second = make_trainer(num_train_epochs=1.0)
    second.args.optim = type(second.args.optim)("adamw_torch_fused")
    second.resume(str(folder))
    assert second.args.optim == "adamw_torch"
