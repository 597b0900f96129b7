"""Lint: each rule fires on what it is for, and stays silent beside it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunegate.contracts.errors import LintError, ModelError
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.preflight import lint as lint_module
from tunegate.preflight.lint import Context, Linted, Sample, lint, refuse
from tunegate.preflight.rule import Need
from tunegate.preflight.rules import judging
from tunegate.preflight.rules.adalora import schedule_problem
from tunegate.preflight.rules.judging import OWN_METRICS
from tunegate.preflight.rules.table import RULES
from tunegate.preflight.steps import optimizer_steps
from tunegate.prepare.settings import PrepareSettings
from tunegate.quantize.settings import QuantizeSettings
from tunegate.train.settings import TrainSettings

#: SmolLM2-135M: tied, and no layer has inputs that 128 divides.
CONFIG = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
UNTIED = {**CONFIG, "tie_word_embeddings": False}
CHAT = tuple(f"You could try to write it down and look at it again after {n} days." for n in range(100))
FACTS = tuple(
    f"{first}{n} {last}{n} was born on {n % 28 + 1} May {1700 + n} in {place}{n}."
    for n, (first, last, place) in enumerate([("Marie", "Keller", "Lund"), ("Ada", "Rossi", "Graz")] * 50)
)


def policy(task: str, metric: str) -> dict[str, Any]:
    """A policy of one check."""
    return {"checks": [{"task": task, "metric": metric, "candidate": "quantized", "floor": 0.5}]}


def context(changes: dict[str, Any] | None = None) -> Context:
    """Default settings on SmolLM2 and 1000 rows of chat.

    Changes are written as ``train.r``; ``config`` and ``rows`` are the base and the data set.
    """
    made = {
        "prepare": settings_document(PrepareSettings()),
        "train": settings_document(TrainSettings()),
        "quantize": settings_document(QuantizeSettings(serving_target="vllm-cuda-sm90")),
        "evaluate": settings_document(EvaluateSettings()),
        "serve_check": {"enabled": False},
        "gate": {"policy": policy("tool_call", "exact")},
    }
    at_hand: dict[str, Any] = {"config": CONFIG, "rows": Sample(1000, CHAT)}
    for name, value in (changes or {}).items():
        section, dot, key = name.partition(".")
        if dot:
            assert key in made[section]
            made[section][key] = value
        else:
            assert section in at_hand
            at_hand[section] = value
    return Context(made, at_hand["config"], at_hand["rows"])


MANY = {"quantize.num_calibration_samples": 128}
INT8 = {"quantize.scheme": "W8A8"}
FLOAT8 = {"quantize.scheme": "FP8_DYNAMIC"}
ADALORA = {"train.method": "adalora"}
FULL = {"train.method": "full", "train.learning_rate": 1e-5}

#: (rule, severity, what is changed): 1000 rows of which 700 are trained on make 88 steps of 8, and at most 125.
FIRES: list[tuple[str, str, dict[str, Any]]] = [
    ("learning-rate", "error", {"train.learning_rate": 1e-1}),
    ("learning-rate", "error", {"train.learning_rate": 5e-6}),
    ("learning-rate", "warning", {"train.learning_rate": 4e-4}),
    ("learning-rate", "warning", {"train.learning_rate": 2e-3}),
    ("learning-rate", "warning", {**FULL, "train.learning_rate": 2e-4}),
    ("learning-rate", "error", {**FULL, "train.learning_rate": 3e-4}),
    ("alpha-equals-r", "warning", {"train.lora_alpha": 16}),
    ("alpha-ratio", "warning", {"train.lora_alpha": 256}),
    ("alpha-ratio", "warning", {"train.r": 64, "train.lora_alpha": 2}),
    ("rslora-scale", "warning", {"train.use_rslora": True, "train.r": 64, "train.lora_alpha": 128}),
    ("rslora-scale", "warning", {"train.use_rslora": True, "train.r": 64, "train.lora_alpha": 3}),
    ("attention-only", "warning", {"train.target_modules": ["q_proj", "v_proj"]}),
    ("attention-only", "warning", {"train.target_modules": ["self_attn.q_proj"]}),
    ("tied-embeddings", "error", {"train.target_modules": ["down_proj", "lm_head"]}),
    ("tied-embeddings", "error", {"train.target_modules": ["down_proj", "embed_tokens"]}),
    ("unknown-target", "error", {"train.target_modules": ["down_proj", "fc1"]}),
    ("unknown-target", "error", {"train.target_modules": ["down_proj", "embed_tokens"], "config": UNTIED}),
    ("serving-adapter", "warning", {"train.r": 1024, "train.lora_alpha": 2048}),
    ("serving-adapter", "warning", ADALORA),
    ("adalora-ranks", "error", {**ADALORA, "train.init_r": 16}),
    ("adalora-rslora", "error", {**ADALORA, "train.use_rslora": True}),
    ("adalora-budget", "error", {**ADALORA, "train.tinit": 100, "train.tfinal": 25}),
    ("adalora-budget", "warning", {**ADALORA, "train.tinit": 68, "train.tfinal": 20}),
    ("adalora-budget", "error", {**ADALORA, "train.tinit": 5, "train.tfinal": 20, "train.deltaT": 101}),
    ("eval-batch", "warning", {"train.per_device_eval_batch_size": 64}),
    ("paged-optimizer", "warning", {"train.optim": "paged_adamw_8bit"}),
    ("full-bfloat16", "warning", {**FULL, "train.dtype": "bfloat16"}),
    ("warmup-length", "warning", {"train.warmup_steps": 88}),
    ("batch-exceeds-rows", "warning", {"train.per_device_train_batch_size": 701}),
    ("fact-ingestion", "warning", {"rows": Sample(1000, FACTS)}),
    ("max-length", "error", {"train.max_length": 8193}),
    ("group-size", "error", {"quantize.group_size": 128}),
    ("group-size", "error", {"config": {**CONFIG, "intermediate_size": 1520}}),
    ("scheme-kernel", "error", {"quantize.serving_target": "vllm-cpu-avx2"}),
    ("scheme-kernel", "error", {**INT8, "quantize.serving_target": "vllm-cuda-sm100"}),
    ("scheme-kernel", "error", {**INT8, "quantize.serving_target": "vllm-cpu-avx512"}),
    ("scheme-kernel", "error", {**FLOAT8, "quantize.scheme": "FP8", "quantize.serving_target": "vllm-cpu-amx"}),
    ("scheme-kernel", "warning", {**FLOAT8, "quantize.serving_target": "vllm-cuda-sm80"}),
    ("scheme-kernel", "warning", {**FLOAT8, "quantize.scheme": "FP8"}),
    ("scheme-kernel", "warning", {"quantize.backend": "auto_gptq"}),
    ("scheme-target", "error", {"quantize.scheme": "auto", "quantize.serving_target": "auto"}),
    ("calibration-rows", "error", {"prepare.num_calibration_samples": 1}),
    ("calibration-data", "error", {**MANY, "rows": Sample(127, CHAT)}),
    ("calibration-data", "warning", {**MANY, "rows": Sample(150, CHAT)}),
    ("policy-task", "error", {"gate.policy": policy("gsm8k", "exact_match")}),
    ("policy-task", "error", {"evaluate.tasks": ["completion_perplexity"]}),
    ("policy-task", "error", {"gate.policy": policy("tool_call", "exakt")}),
    ("policy-task", "error", {"gate.policy": policy("completion_perplexity", "perplexity")}),
    ("serving-unchecked", "error", {"gate.policy": {**policy("tool_call", "exact"), "serving": {}}}),
]

#: (rule, what is changed): each as near to the rule as it may be.
SILENT: list[tuple[str, dict[str, Any]]] = [
    ("learning-rate", {"train.learning_rate": 1e-4}),
    ("learning-rate", FULL),
    ("alpha-equals-r", {**ADALORA, "train.lora_alpha": 16}),
    ("alpha-equals-r", {**FULL, "train.lora_alpha": 16}),
    ("alpha-ratio", {"train.r": 256, "train.lora_alpha": 16}),  # constant
    ("alpha-ratio", {"train.r": 256, "train.lora_alpha": 512}),  # twice r
    ("alpha-ratio", {"train.lora_alpha": 512, "train.use_rslora": True}),
    ("rslora-scale", {"train.use_rslora": True, "train.r": 64, "train.lora_alpha": 16}),
    ("rslora-scale", {"train.use_rslora": True}),
    ("rslora-scale", {"train.r": 64, "train.lora_alpha": 128}),
    ("attention-only", {"train.target_modules": ["q_proj", "down_proj"]}),
    ("attention-only", {**FULL, "train.target_modules": ["q_proj"]}),
    ("tied-embeddings", {"train.target_modules": ["down_proj", "lm_head"], "config": UNTIED}),
    ("tied-embeddings", {**FULL, "train.target_modules": ["lm_head"]}),
    ("unknown-target", {"train.target_modules": ["mlp.down_proj"]}),
    ("serving-adapter", {"train.r": 512, "train.lora_alpha": 1024}),
    ("serving-adapter", {**FULL, "train.r": 1024}),
    ("adalora-ranks", {**ADALORA, "train.init_r": 17}),
    ("adalora-ranks", {"train.init_r": 1}),
    ("adalora-rslora", {"train.use_rslora": True}),
    ("adalora-budget", {**ADALORA, "train.tinit": 67, "train.tfinal": 20}),
    ("adalora-budget", {**ADALORA, "train.tinit": 5, "train.tfinal": 20, "train.deltaT": 63}),
    ("adalora-budget", {"train.tinit": 1000, "rows": None}),
    ("eval-batch", {"train.per_device_eval_batch_size": 4}),
    ("paged-optimizer", {"train.optim": "adamw_torch_fused"}),
    ("full-bfloat16", {"train.dtype": "bfloat16"}),
    ("full-bfloat16", FULL),
    ("warmup-length", {"train.warmup_steps": 87}),
    ("warmup-length", {"train.warmup_steps": 500, "train.lr_scheduler_type": "constant"}),
    ("batch-exceeds-rows", {"train.per_device_train_batch_size": 7, "train.gradient_accumulation_steps": 100}),
    ("fact-ingestion", {"rows": Sample(1000, FACTS), "train.r": 32, "train.lora_alpha": 64}),
    ("fact-ingestion", {**FULL, "rows": Sample(1000, FACTS)}),
    ("max-length", {"train.max_length": 8192}),
    (
        "max-length",
        {
            "train.max_length": 16384,
            "config": {**CONFIG, "rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 4096}},
        },
    ),
    ("group-size", {"quantize.group_size": 64}),
    ("group-size", {"quantize.group_size": 128, "quantize.scheme": "W8A8"}),
    ("group-size", {"quantize.group_size": 100, "quantize.ignore": ["lm_head", "re:.*proj"]}),
    ("scheme-kernel", {"quantize.serving_target": "vllm-cpu-avx512"}),
    ("scheme-kernel", {**INT8, "quantize.serving_target": "vllm-cpu-avx512-vnni"}),
    ("scheme-kernel", {**FLOAT8, "quantize.serving_target": "vllm-cuda-sm89"}),
    ("scheme-kernel", {"quantize.serving_target": "auto"}),
    ("scheme-target", {"quantize.scheme": "auto"}),
    ("scheme-target", {"quantize.serving_target": "auto"}),
    ("calibration-rows", {"prepare.num_calibration_samples": 1, "quantize.scheme": "FP8_DYNAMIC"}),
    ("calibration-data", {**MANY, "rows": Sample(200, CHAT)}),
    ("calibration-data", {**FLOAT8, "rows": Sample(10, CHAT), "train.warmup_steps": 0}),
    ("policy-task", {"evaluate.tasks": ["gsm8k"], "gate.policy": policy("gsm8k", "exact_match")}),  # not guessed
    ("serving-unchecked", {"gate.policy": {**policy("tool_call", "exact"), "serving": {"required": False}}}),
    (
        "serving-unchecked",
        {"gate.policy": {**policy("tool_call", "exact"), "serving": {}}, "serve_check.enabled": True},
    ),
]


def said(changes: dict[str, Any]) -> list[tuple[str, str]]:
    """Rule and severity of each finding."""
    return [(found.rule, found.severity) for found in lint(context(changes)).findings]


def test_the_defaults_raise_nothing_and_everything_was_checked() -> None:
    assert lint(context()) == Linted((), ())


@pytest.mark.parametrize(("rule", "severity", "changes"), FIRES)
def test_each_rule_fires_on_what_it_is_for(rule: str, severity: str, changes: dict[str, Any]) -> None:
    found = said(changes)
    assert (rule, severity) in found
    beside = {("serving-adapter", "warning")} if changes.get("train.method") == "adalora" else set()
    assert {*found} - {(rule, severity)} <= beside


@pytest.mark.parametrize(("rule", "changes"), SILENT)
def test_each_rule_is_silent_beside_what_it_is_for(rule: str, changes: dict[str, Any]) -> None:
    assert rule not in [name for name, _ in said(changes)]


def test_no_rule_is_without_a_case_that_fires_and_one_that_does_not() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids)) >= 12
    assert {rule for rule, _, _ in FIRES} == {rule for rule, _ in SILENT} == set(ids)


def test_a_finding_says_what_was_seen_what_to_do_and_where_that_comes_from() -> None:
    (found,) = lint(context({"train.learning_rate": 4e-4})).findings
    assert "0.0004" in found.seen
    assert "between 0.0001 and 0.0002" in found.remedy
    assert found.reference == next(rule.reference for rule in RULES if rule.id == "learning-rate")


@pytest.mark.parametrize("need", ["base_config", "rows"])
def test_a_rule_without_what_it_needs_is_named_with_the_reason_and_not_passed_over(need: Need) -> None:
    known = context({"train.target_modules": ["down_proj"], "train.warmup_steps": 5})
    known = replace(known, base_config=None) if need == "base_config" else replace(known, rows=None)
    lacking = lint(replace(known, absent={need: "it lies in a bucket"}))
    assert lacking.findings == ()
    assert {(u.rule, u.reason) for u in lacking.unchecked} == {
        (rule.id, "it lies in a bucket") for rule in RULES if need in rule.needs and rule.applies(known.sections)
    }
    assert all(u.reason for u in lint(known).unchecked)


def test_a_rule_that_means_nothing_for_the_method_is_not_called_unchecked() -> None:
    assert "adalora-budget" not in [u.rule for u in lint(replace(context(), rows=None)).unchecked]


def test_an_architecture_of_unknown_shape_is_said_not_to_be_checked() -> None:
    linted = lint(context({"config": {**CONFIG, "model_type": "novel"}, "quantize.group_size": 64}))
    assert linted.findings == ()
    assert [(u.rule, "novel" in u.reason) for u in linted.unchecked] == [("group-size", True)]


def test_what_a_lint_says_survives_its_file() -> None:
    linted = lint(replace(context({"train.learning_rate": 4e-4}), rows=None))
    assert linted.findings and linted.unchecked
    assert Linted.from_json(linted.to_json()) == linted


def test_every_task_of_our_own_has_its_metrics_in_the_table() -> None:
    assert set(OWN_METRICS) == set(LOCAL_TASKS)


def test_errors_stop_the_run_with_exit_code_two_and_warnings_do_not() -> None:
    refuse(lint(context({"train.learning_rate": 4e-4})))
    with pytest.raises(LintError, match="waste") as caught:
        refuse(lint(context({"train.learning_rate": 1e-1})))
    assert caught.value.exit_code == 2
    assert "0.1" in caught.value.seen


def test_the_readme_lists_every_rule_as_the_table_has_it() -> None:
    text, _ = (Path(lint_module.__file__).parent / "README.md").read_text("utf-8").split("## Which scheme")
    needs = {"base_config": "base", "rows": "rows", "serving_target": "target"}
    expected = [
        f"| `{rule.id}` | {rule.about} | {', '.join(needs[n] for n in rule.needs) or '–'} | {rule.reference} |"
        for rule in RULES
    ]
    assert [line for line in text.splitlines() if line.startswith("| `")] == expected


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 63, 64, 65, 270])
@pytest.mark.parametrize("epochs", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_steps_are_those_that_train_will_make(rows: int, epochs: float, accumulation: int) -> None:
    """What plans the schedules counts as the trainer that steps."""
    from torch.utils.data import DataLoader
    from transformers import Trainer

    settings = TrainSettings(num_train_epochs=epochs, gradient_accumulation_steps=accumulation)
    trainer = object.__new__(Trainer)
    trainer._train_batch_size = settings.per_device_train_batch_size
    trainer.accelerator, trainer.model = SimpleNamespace(parallelism_config=None), SimpleNamespace(_tp_size=1)
    args = SimpleNamespace(
        max_steps=-1, num_train_epochs=epochs, gradient_accumulation_steps=accumulation, world_size=1
    )
    *_, made = trainer.set_initial_training_values(args, DataLoader(range(rows), settings.per_device_train_batch_size))
    assert optimizer_steps(rows, settings_document(settings)) == made


@pytest.mark.parametrize("total", [1, 2, 3, 10, 40])
@pytest.mark.parametrize(("tinit", "tfinal"), [(None, None), (0, 0), (4, 5), (5, 5), (6, 4), (9, 30)])
@pytest.mark.parametrize("delta", [1, 2, 30])
def test_a_schedule_is_refused_here_exactly_where_train_refuses_it(
    total: int, tinit: int | None, tfinal: int | None, delta: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunegate.contracts.errors import SettingsError
    from tunegate.train.adalora import adalora_config

    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(AdaLoraConfig=dict))  # the refusal is train's own
    settings = TrainSettings(method="adalora", tinit=tinit, tfinal=tfinal, deltaT=delta)
    try:
        adalora_config(settings, total_step=total)
        refused = False
    except SettingsError:
        refused = True
    assert bool(schedule_problem(total, settings_document(settings))) == refused


@pytest.mark.parametrize("asked", [0, 32, 64, 100, 128])
@pytest.mark.parametrize("inner", [1536, 1520])
def test_a_group_size_is_refused_here_exactly_where_quantize_refuses_it(asked: int, inner: int) -> None:
    from tunegate.contracts.errors import SettingsError
    from tunegate.quantize.group_size import GROUP_SIZES, pick_group_size

    assert judging.GROUP_SIZES == GROUP_SIZES
    changed = context({"quantize.group_size": asked, "config": {**CONFIG, "intermediate_size": inner}})
    try:
        pick_group_size({"q_proj": 576, "o_proj": 576, "gate_proj": 576, "down_proj": inner}, asked=asked)
        refused = False
    except SettingsError:
        refused = True
    assert ("group-size" in [found.rule for found in lint(changed).findings]) == refused


def test_a_base_that_cannot_be_read_as_a_model_stops_no_lint() -> None:
    """The steps that load it say what is wrong."""
    broken = context({"config": {"model_type": "llama"}, "train.target_modules": ["down_proj"]})
    with pytest.raises(ModelError):
        _ = broken.shape
    assert {u.rule for u in lint(broken).unchecked} == {"unknown-target", "group-size"}
