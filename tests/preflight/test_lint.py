"""Lint: each rule fires on what it is for, and stays silent on the defaults."""

from __future__ import annotations

from typing import Any

import pytest

from tunegate.contracts.errors import LintError
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.documents import LOCAL_TASKS
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.preflight.lint import OWN_METRICS, lint, refuse
from tunegate.prepare.settings import PrepareSettings
from tunegate.quantize.settings import QuantizeSettings
from tunegate.train.settings import TrainSettings


def policy(task: str, metric: str) -> dict[str, Any]:
    """A policy of one check."""
    return {"checks": [{"task": task, "metric": metric, "candidate": "quantized", "floor": 0.5}]}


def sections(**changes: Any) -> dict[str, dict[str, Any]]:
    """Default settings, with changes written as ``train__r=8``."""
    made = {
        "prepare": settings_document(PrepareSettings()),
        "train": settings_document(TrainSettings()),
        "quantize": settings_document(QuantizeSettings()),
        "evaluate": settings_document(EvaluateSettings()),
        "gate": {"policy": policy("tool_call", "exact")},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        assert key in made[section]
        made[section][key] = value
    return made


def test_the_defaults_raise_nothing() -> None:
    assert lint(sections()) == []


@pytest.mark.parametrize(
    ("change", "rule", "severity"),
    [
        ({"train__learning_rate": 1e-1}, "learning-rate", "error"),
        ({"train__learning_rate": 5e-6}, "learning-rate", "error"),
        ({"train__learning_rate": 4e-4}, "learning-rate", "warning"),
        ({"train__lora_alpha": 16, "train__r": 16}, "alpha-equals-r", "warning"),
        ({"train__target_modules": ["q_proj", "v_proj"]}, "attention-only", "warning"),
        ({"train__per_device_eval_batch_size": 64}, "eval-batch", "warning"),
        ({"train__optim": "paged_adamw_8bit"}, "paged-optimizer", "warning"),
        ({"prepare__num_calibration_samples": 1}, "calibration-rows", "error"),
        ({"gate__policy": policy("gsm8k", "exact_match")}, "policy-task", "error"),
        ({"evaluate__tasks": ["completion_perplexity"]}, "policy-task", "error"),
        ({"gate__policy": policy("tool_call", "exakt")}, "policy-task", "error"),
        ({"gate__policy": policy("completion_perplexity", "perplexity")}, "policy-task", "error"),
    ],
)
def test_each_rule_fires_on_what_it_is_for(change: dict[str, Any], rule: str, severity: str) -> None:
    assert [(f.rule, f.severity) for f in lint(sections(**change))] == [(rule, severity)]


def test_every_task_of_our_own_has_its_metrics_in_the_table() -> None:
    assert set(OWN_METRICS) == set(LOCAL_TASKS)


def test_what_a_task_of_the_harness_measures_is_not_guessed() -> None:
    assert lint(sections(evaluate__tasks=["gsm8k"], gate__policy=policy("gsm8k", "exact_match"))) == []


def test_errors_stop_the_run_with_exit_code_two_and_warnings_do_not() -> None:
    refuse(lint(sections(train__learning_rate=4e-4)))
    with pytest.raises(LintError, match="waste") as caught:
        refuse(lint(sections(train__learning_rate=1e-1)))
    assert caught.value.exit_code == 2
    assert "0.1" in caught.value.seen
