"""Gradients of the factors are those of ``h = W0·x + (alpha / r)·B·A·x``, computed without PEFT, TRL and our loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.train.hold import Held
from tunegate.train.model import load_base
from tunegate.train.settings import TrainSettings
from tunegate.train.trainer import build_trainer

torch = pytest.importorskip("torch")

ALPHA, RANK, PENALTY = 12, 4, 0.5


def frozen_weights(base: Any) -> dict[str, Any]:
    """The weights that the adapted modules compute with: 4-bit ones as bitsandbytes itself dequantizes them."""
    import bitsandbytes

    found = {name: p.detach().clone() for name, p in base.named_parameters()}
    for name, module in base.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            found[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return found


def factor_of(name: str) -> tuple[str, str]:
    """PEFT's name of a parameter → the base weight that it changes, and which factor it is."""
    module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
    return f"{module}.weight", rest[0]


def explicit_loss(base: Any, weights: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    """The mean of −log p(token) over the labelled tokens, row by row."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logits = torch.func.functional_call(base, weights, kwargs={"input_ids": ids}).logits[0, :-1]
        at = labels != -100
        total = total - logits.log_softmax(dim=-1)[at].gather(1, labels[at, None]).sum()
        tokens += int(at.sum())
    return total / tokens


def validate_first(trainer: Any, rows: list[dict[str, Any]]) -> None:
    """As a run does. On a CPU with AVX512-BF16 bitsandbytes would pack its weights anew here and lose the gradients."""
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(**trainer.data_collator(rows))


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora"])
def test_gradients_of_the_factors_equal_autograd_through_the_formula(
    method: str, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(
        method=method, r=RANK, init_r=6, lora_alpha=ALPHA, max_length=256, tinit=1, tfinal=1, deltaT=1,
        orth_reg_weight=PENALTY, per_device_train_batch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    base = load_base(tiny_base, settings)
    frozen = frozen_weights(base)
    held = Held(False, "adamw_torch", "")
    trainer = build_trainer(base, load_tokenizer(tiny_base), tiny_dataset, settings, held, scratch=tmp_path)
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        torch.nn.init.normal_(parameter, std=0.1)
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.current_gradient_accumulation_steps = 1
    labelled = torch.tensor(sum(sum(label != -100 for label in row["labels"][1:]) for row in rows))
    validate_first(trainer, rows)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows), num_items_in_batch=labelled)
    loss.backward()

    leaves = {factor_of(name): p.detach().clone().requires_grad_() for name, p in trainable.items()}
    plain = load_causal_lm(tiny_base).train()
    weights, penalty = dict(frozen), torch.zeros(())
    adapted = {weight for weight, _ in leaves}
    assert len(adapted) == 14 and adapted <= frozen.keys()
    for weight in adapted:
        a, b = leaves[weight, "A"], leaves[weight, "B"]
        if method == "adalora":
            change = b @ torch.diag(leaves[weight, "E"].flatten()) @ a * ALPHA / (6 + 1e-5)
            penalty = penalty + (b.T @ b - torch.eye(6)).square().sum() + (a @ a.T - torch.eye(6)).square().sum()
        else:
            change = b @ a * ALPHA / RANK
        weights[weight] = frozen[weight] + change
    expected = explicit_loss(plain, weights, rows) + PENALTY * penalty / len(adapted)
    gradients = torch.autograd.grad(expected, list(leaves.values()))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for (key, gradient), parameter in zip(zip(leaves, gradients, strict=True), trainable.values(), strict=True):
        assert float(gradient.norm()) > 1e-3, key
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-5), key
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm(), key


def test_evaluating_a_four_bit_base_leaves_its_weights_as_they_were_quantized(tiny_base: Path) -> None:
    base = load_base(tiny_base, TrainSettings(method="qlora"))
    before = frozen_weights(base)
    with torch.no_grad():
        logits = base.eval()(input_ids=torch.arange(12)[None]).logits
        expected = torch.func.functional_call(
            load_causal_lm(tiny_base), before, kwargs={"input_ids": torch.arange(12)[None]}
        ).logits
    after = frozen_weights(base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_four_bit_base_is_not_the_original_so_that_the_check_above_can_tell_them_apart(tiny_base: Path) -> None:
    four_bit = frozen_weights(load_base(tiny_base, TrainSettings(method="qlora")))
    original = frozen_weights(load_base(tiny_base, TrainSettings(method="lora")))
    name = "model.layers.0.mlp.up_proj.weight"
    assert (four_bit[name] - original[name]).norm() > 0.05 * original[name].norm()
