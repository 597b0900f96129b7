"""AdaLoRA: scores, ranks and penalty are those of the paper, and what is saved is what was trained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tunegate.contracts.errors import RunError, SettingsError
from tunegate.contracts.files import sha256_file
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.adalora import (
    adalora_config,
    allocator_document,
    allocator_tensors,
    orthogonality,
    rank_table,
    restore_allocator,
)
from tunegate.train.adapter_files import save_adapter
from tunegate.train.hold import Held
from tunegate.train.settings import TrainSettings
from tunegate.train.step import run
from tunegate.train.trainer import build_trainer

torch = pytest.importorskip("torch")

MODULES = 14  # seven linear layers in each of the two blocks


@pytest.fixture
def make_trainer(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> Any:
    def make(**settings: Any) -> Any:
        plain = {"method": "adalora", "r": 2, "init_r": 4, "tinit": 1, "tfinal": 2, "lora_alpha": 8}
        plain |= {"max_length": 256, "learning_rate": 5e-3, "num_train_epochs": 2.0}
        torch.manual_seed(0)
        return build_trainer(
            load_causal_lm(tiny_base), load_tokenizer(tiny_base), tiny_dataset, TrainSettings(**{**plain, **settings}),
            Held(False, "adamw_torch", ""), scratch=tmp_path,
        )  # fmt: skip

    return make


def adalora_model(base: Path, **settings: Any) -> Any:
    """The untrained adapter on its base, with factors that are not zero."""
    from peft import get_peft_model

    plain = {"method": "adalora", "r": 2, "init_r": 4, "lora_alpha": 8}
    torch.manual_seed(3)
    model = get_peft_model(load_causal_lm(base), adalora_config(TrainSettings(**{**plain, **settings}), total_step=20))
    for _, parameter in factors(model).items():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def factors(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Parameters and gradients of each optimizer step, before the allocator prunes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[Any, Any]]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({name: (p.detach().clone(), p.grad.clone()) for name, p in factors(model).items()})


class Pruned(TrainerCallback):  # type: ignore[misc]
    """What is left after each optimizer step: singular values that are not zero, and the allocator's averages."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.averages: list[dict[str, Any]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept.append({n: (p != 0).flatten().clone() for n, p in factors(model).items() if "lora_E" in n})
        self.averages.append({name: tensor.clone() for name, tensor in allocator_tensors(model).items()})


def recorded(trainer: Any) -> tuple[Recorder, Pruned]:
    recorder, pruned = Recorder(), Pruned()
    trainer.callback_handler.callbacks.insert(0, recorder)
    trainer.add_callback(pruned)
    trainer.train()
    return recorder, pruned


def triplets(scores: dict[str, Any]) -> dict[str, Any]:
    """Equation 11 of the paper: the score of a singular value, and the means over its two singular vectors."""
    return {
        name: scores[name].flatten()
        + scores[name.replace("lora_E", "lora_A")].mean(dim=1)
        + scores[name.replace("lora_E", "lora_B")].mean(dim=0)
        for name in scores
        if "lora_E" in name
    }


def test_the_penalty_is_the_squared_distance_from_orthogonality_averaged_over_the_layers(tiny_base: Path) -> None:
    model = adalora_model(tiny_base)
    ours = orthogonality(model)
    ours.backward()
    total, found = torch.zeros((), dtype=torch.float64), 0
    leaves = {name: p.detach().double().requires_grad_() for name, p in factors(model).items()}
    for name, p in leaves.items():
        if "lora_E" not in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            total = total + torch.linalg.matrix_norm(gram - torch.eye(4, dtype=torch.float64), "fro") ** 2
            found += 1
    total = total / MODULES
    total.backward()
    assert found == 2 * MODULES
    assert float(ours.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for name, p in factors(model).items():
        if "lora_E" not in name:
            assert torch.allclose(p.grad.double(), leaves[name].grad, rtol=1e-4, atol=1e-6), name


def test_the_penalty_is_in_full_precision_where_the_computation_is_not(tiny_base: Path) -> None:
    model = adalora_model(tiny_base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = orthogonality(model)
    assert torch.equal(inside, orthogonality(model))


def test_scores_and_kept_ranks_are_those_of_the_formula_at_every_step(make_trainer: Any) -> None:
    beta1, beta2, tinit, tfinal = 0.8, 0.6, 1, 2
    trainer = make_trainer(beta1=beta1, beta2=beta2, tinit=tinit, tfinal=tfinal)
    recorder, pruned = recorded(trainer)
    total, budget0, budget1 = len(recorder.steps), 4 * MODULES, 2 * MODULES
    last = total - tfinal
    assert total == trainer.state.max_steps and last - tinit >= 5
    smoothed = {name: torch.zeros_like(p) for name, (p, _) in recorder.steps[0].items()}
    uncertain = {name: torch.zeros_like(p) for name, (p, _) in recorder.steps[0].items()}
    for step, seen in enumerate(recorder.steps, 1):
        if step < last:
            for name, (p, gradient) in seen.items():
                sensitivity = (p * gradient).abs()  # equation 8
                smoothed[name] = beta1 * smoothed[name] + (1 - beta1) * sensitivity  # 9
                away = (sensitivity - smoothed[name]).abs()
                uncertain[name] = beta2 * uncertain[name] + (1 - beta2) * away  # 10
            for name in seen:
                key = name.removeprefix("base_model.model.")
                averages = pruned.averages[step - 1]
                assert torch.allclose(averages[f"exp_avg_ipt/{key}"], smoothed[name], rtol=1e-5, atol=0), name
                assert torch.allclose(averages[f"exp_avg_unc/{key}"], uncertain[name], rtol=1e-4, atol=1e-12), name
        kept = torch.cat(list(pruned.kept[step - 1].values()))
        if step <= tinit:
            assert kept.all()
            continue
        if step <= last:
            left = (1 - (step - tinit) / (last - tinit)) ** 3  # equation 12
            budget = int(budget1 + (budget0 - budget1) * left)
            scores = triplets({name: smoothed[name] * uncertain[name] for name in smoothed})
            flat = torch.cat([scores[name] for name in pruned.kept[step - 1]])
            expected = torch.zeros_like(kept).index_fill(0, flat.topk(budget).indices, True)
        assert torch.equal(kept, expected), step  # after the last pruning, what it left


def test_ranks_end_at_the_budget_and_differ_between_modules(trained_adalora: Path) -> None:
    rows = json.loads((trained_adalora / "training.json").read_text("utf-8"))["ranks"]
    assert len(rows) == MODULES
    assert sum(row["rank"] for row in rows) == 2 * MODULES
    assert len({row["rank"] for row in rows}) > 1
    assert {row["init_r"] for row in rows} == {8}
    assert [(row["layer"], row["kind"]) for row in rows][:2] == [(0, "q_proj"), (0, "k_proj")]
    assert rows[-1]["module"] == "model.layers.1.mlp.down_proj"


def test_the_page_shows_every_rank_and_the_penalty(trained_adalora: Path) -> None:
    page = (trained_adalora / "page.html").read_text("utf-8")
    training = json.loads((trained_adalora / "training.json").read_text("utf-8"))
    for row in training["ranks"]:
        assert f"<title>{row['kind']}, layer {row['layer']}: {row['rank']}</title>" in page
        assert row["module"] in page
    assert "Orthogonality" in page
    penalties = [point["orthogonality"] for point in training["history"] if "loss" in point]
    assert penalties[-1] < penalties[0]


def test_adalora_learns(trained_adalora: Path) -> None:
    summary = json.loads((trained_adalora / "summary.json").read_text("utf-8"))
    assert summary["validation_loss"] < 0.8 * summary["validation_loss_base"]


def test_equal_runs_give_equal_bytes_and_the_penalty_and_the_allocator_each_change_them(
    train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def digest(name: str, **settings: Any) -> str:
        wanted = train_settings("adalora", **{"r": 2, "init_r": 8, "num_train_epochs": 1.0, **settings})
        run(wanted, base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / name)
        return sha256_file(tmp_path / name / "adapter_model.safetensors")

    found = [digest("one"), digest("without the penalty", orth_reg_weight=0.0)]
    assert digest("again") == found[0]
    monkeypatch.setattr("tunegate.train.adalora.allocator_callback", TrainerCallback)
    found.append(digest("without the allocator"))
    assert len(set(found)) == 3
    ranks = json.loads((tmp_path / "without the allocator" / "training.json").read_text("utf-8"))["ranks"]
    assert {row["rank"] for row in ranks} == {8}


def test_what_is_saved_is_what_was_trained_in_plain_peft_too_with_a_module_of_rank_zero(
    make_trainer: Any, tiny_base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    trainer = make_trainer(r=1, init_r=8, lora_alpha=64, learning_rate=3e-2)
    trainer.train()
    assert 0 in [row["rank"] for row in rank_table(trainer.model)]
    ids = torch.tensor([load_tokenizer(tiny_base)("Give me weather of Paris for 3 days")["input_ids"]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        with trainer.model.disable_adapter():
            base = trainer.model(input_ids=ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT takes such a module for a shard that was not gathered
        save_adapter(trainer.model, tmp_path / "adapter", base_model=tiny_base, base_digest="0" * 64)
    loaded = PeftModel.from_pretrained(load_causal_lm(tiny_base), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = loaded(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - base).abs().max() > 0.1


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"init_r": 2}, "init_r 2, r 2"),
        ({"use_rslora": True}, "use_rslora"),
        ({"tinit": 7, "tfinal": 5}, "tinit 7, tfinal 5"),
        ({"tinit": 0, "tfinal": 40}, "tfinal 40"),
        ({"deltaT": 30}, "deltaT 30"),
        ({"num_train_epochs": 0.1}, "1 optimizer steps"),
    ],
)
def test_settings_with_which_nothing_could_be_pruned_are_refused_before_training(
    settings: dict[str, Any], seen: str, train_settings: Any, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    wanted = train_settings("adalora", **{"r": 2, "init_r": 4, **settings})
    with pytest.raises(SettingsError) as caught:
        run(wanted, base_model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert seen in caught.value.seen
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_for_another_number_of_steps_stops_the_run_at_its_start(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.model.peft_config["default"].total_step += 1
    with pytest.raises(RunError, match="schedule"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(("rows", "steps", "epochs"), [(8, 1, 1.3), (5, 3, 1.0)])
def test_the_schedule_has_the_steps_of_the_run_with_accumulation_and_parts_of_epochs(
    make_trainer: Any, rows: int, steps: int, epochs: float
) -> None:
    trainer = make_trainer(
        per_device_train_batch_size=rows, gradient_accumulation_steps=steps, num_train_epochs=epochs, tinit=0, tfinal=0
    )
    trainer.train()
    assert sum(row["rank"] for row in rank_table(trainer.model)) == 2 * MODULES


def test_the_penalty_counts_once_a_step_however_many_batches_it_has(make_trainer: Any) -> None:
    found = []
    for rows, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps, max_grad_norm=1e9, orth_reg_weight=2.0,
            num_train_epochs=0.8,
        )  # fmt: skip
        recorder, _ = recorded(trainer)
        penalty = next(e["orthogonality"] for e in trainer.state.log_history if "orthogonality" in e)
        found.append((recorder.steps[0], penalty))
    (large, penalty), (small, same_penalty) = found
    assert penalty == pytest.approx(same_penalty, rel=1e-5)
    for name, (_, gradient) in large.items():
        assert float(gradient.norm()) > 0, name
        assert torch.allclose(gradient, small[name][1], rtol=1e-3, atol=1e-5), name


def interrupted(trainer: Any, *, after: int) -> Any:
    """The model of a run that was left in the middle of its pruning."""

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= after

    trainer.add_callback(Stop())
    trainer.train()
    return trainer.model


def test_an_allocator_that_is_put_back_goes_on_as_if_it_had_never_stopped(make_trainer: Any) -> None:
    model = interrupted(make_trainer(), after=4)
    tensors, document = allocator_tensors(model), json.loads(json.dumps(allocator_document(model)))
    assert len(tensors) == 3 * len(factors(model)) and document["rank_pattern"]
    fresh = make_trainer().model
    restore_allocator(fresh, tensors, document)
    again = allocator_tensors(fresh)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert allocator_document(fresh) == document
    torch.manual_seed(1)
    for one, other in zip(factors(model).values(), factors(fresh).values(), strict=True):
        other.data.copy_(one.data)
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    for stopped_at in (model, fresh):
        stopped_at.base_model.update_and_allocate(5)
    assert allocator_document(fresh) == allocator_document(model) != document
    for one, other in zip(factors(model).values(), factors(fresh).values(), strict=True):
        assert torch.equal(one, other)


def test_before_the_first_step_and_after_the_last_pruning_there_are_no_averages(make_trainer: Any) -> None:
    trainer = make_trainer()
    assert allocator_tensors(trainer.model) == {}
    trainer.train()
    assert allocator_tensors(trainer.model) == {}
    fresh = make_trainer().model
    restore_allocator(fresh, {}, allocator_document(trainer.model))
    assert [row["rank"] for row in rank_table(fresh)] == [row["rank"] for row in rank_table(trainer.model)]


def test_the_state_of_another_allocator_is_refused(make_trainer: Any) -> None:
    model = interrupted(make_trainer(), after=2)
    tensors, document = allocator_tensors(model), allocator_document(model)
    first = next(iter(tensors))
    incomplete = {name: tensor for name, tensor in tensors.items() if name != first}
    for wrong in (incomplete, tensors | {first: torch.zeros(1)}, tensors | {"ipt/other": torch.zeros(1)}):
        with pytest.raises(RunError, match="not this model's"):
            restore_allocator(model, wrong, document)
    with pytest.raises(RunError, match="not this model's"):
        restore_allocator(model, tensors, {})
    assert allocator_document(model) == document  # nothing was put back in part


def test_a_model_without_an_allocator_has_no_state_and_takes_none(make_trainer: Any, tiny_base: Path) -> None:
    for model in (make_trainer(method="lora").model, load_causal_lm(tiny_base)):
        assert allocator_tensors(model) == {} and allocator_document(model) == {}
        restore_allocator(model, {}, {})
        with pytest.raises(RunError):
            restore_allocator(model, {}, {"rank_pattern": None})
