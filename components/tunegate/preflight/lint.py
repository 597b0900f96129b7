"""Lint: settings that are each valid, and together known to waste a run.

A rule is one function in :data:`RULES`; a new one is added there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunegate.contracts.errors import LintError

Sections = Mapping[str, Mapping[str, Any]]

#: Where adapters are known to train well (requirements M5; arXiv:2106.09685, arXiv:2305.14314).
ADAPTER_LEARNING_RATES = (1e-4, 2e-4)

#: Beyond this factor from the known range a run is sure to be wasted.
HOPELESS_FACTOR = 10.0

#: Our own tasks → what they measure of a row; what a task of the harness measures is known only when it has run.
OWN_METRICS: Mapping[str, Sequence[str]] = {"tool_call": ("exact", "valid"), "completion_perplexity": ("nll",)}

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "c_attn", "query_key_value")


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: the rule's id.
        severity: ``error`` stops the run, ``warning`` is shown.
        seen: what was set.
        remedy: what to do.
        reference: where the rule comes from.
    """

    rule: str
    severity: Literal["error", "warning"]
    seen: str
    remedy: str
    reference: str


Rule = Callable[[Sections], Iterator[Finding]]


def _learning_rate(sections: Sections) -> Iterator[Finding]:
    rate = sections["train"]["learning_rate"]
    low, high = ADAPTER_LEARNING_RATES
    if low <= rate <= high:
        return
    hopeless = rate > high * HOPELESS_FACTOR or rate < low / HOPELESS_FACTOR
    yield Finding(
        "learning-rate",
        "error" if hopeless else "warning",
        f"train.learning_rate {rate:g}, outside {low:g} to {high:g}" + (" by more than ten times" if hopeless else ""),
        f"choose a learning_rate between {low:g} and {high:g}",
        "arXiv:2305.14314, table 9",
    )


def _alpha_equals_r(sections: Sections) -> Iterator[Finding]:
    train = sections["train"]
    if train["lora_alpha"] == train["r"]:
        yield Finding(
            "alpha-equals-r",
            "warning",
            f"train.lora_alpha {train['lora_alpha']} equals r, so the update is scaled by 1; the usual ratio is 2",
            f"set lora_alpha to {2 * train['r']}, or keep it constant while you vary r",
            "arXiv:2106.09685, section 4.1",
        )


def _attention_only(sections: Sections) -> Iterator[Finding]:
    targets = sections["train"]["target_modules"]
    if targets and all(target in _ATTENTION for target in targets):
        yield Finding(
            "attention-only",
            "warning",
            f"train.target_modules {', '.join(targets)}: no MLP layer is adapted",
            "use ['all-linear']: adapting every linear layer is what reaches full fine-tuning",
            "arXiv:2305.14314, section 4",
        )


def _eval_batch(sections: Sections) -> Iterator[Finding]:
    train = sections["train"]
    if train["per_device_eval_batch_size"] > train["per_device_train_batch_size"]:
        yield Finding(
            "eval-batch",
            "warning",
            f"train.per_device_eval_batch_size {train['per_device_eval_batch_size']} is larger than the train batch "
            f"{train['per_device_train_batch_size']}",
            "make it no larger than the train batch: validation holds logits of the whole batch",
            "huggingface/transformers#8476",
        )


def _paged_optimizer(sections: Sections) -> Iterator[Finding]:
    optim = sections["train"]["optim"]
    if optim.startswith("paged"):
        yield Finding(
            "paged-optimizer",
            "warning",
            f"train.optim {optim}: paging is for spikes and slows every step that pages",
            "use adamw_torch and make the run fit: smaller batch, gradient_checkpointing",
            "arXiv:2305.14314, section 3",
        )


def _calibration_rows(sections: Sections) -> Iterator[Finding]:
    wanted = sections["quantize"]["num_calibration_samples"]
    taken = sections["prepare"]["num_calibration_samples"]
    if wanted > taken and sections["quantize"]["scheme"] != "FP8_DYNAMIC":
        yield Finding(
            "calibration-rows",
            "error",
            f"quantize.num_calibration_samples {wanted}, but prepare takes {taken}",
            f"raise prepare.num_calibration_samples to {wanted}, or lower the other",
            "requirements Q1",
        )


def _policy_task(sections: Sections) -> Iterator[Finding]:
    tasks = sections.get("evaluate", {}).get("tasks")
    for check in sections.get("gate", {}).get("policy", {}).get("checks", ()):
        task, metric = check.get("task"), check.get("metric")
        if tasks is not None and task not in tasks:
            seen, known = f"a policy check of task {task}, which is not in evaluate.tasks", tasks
        elif task in OWN_METRICS and metric not in OWN_METRICS[task]:
            seen, known = f"a policy check of {task}.{metric}, which the task does not measure", OWN_METRICS[task]
        else:
            continue
        yield Finding("policy-task", "error", seen, f"use one of {', '.join(known)}", "evaluate/README.md")


RULES: Sequence[Rule] = (
    _learning_rate, _alpha_equals_r, _attention_only, _eval_batch, _paged_optimizer, _calibration_rows, _policy_task,
)  # fmt: skip


def lint(sections: Sections) -> list[Finding]:
    """Every finding of every rule.

    Args:
        sections: step → its settings, with defaults filled in.
    """
    return [finding for rule in RULES for finding in rule(sections)]


def refuse(findings: Sequence[Finding]) -> None:
    """Stops the run when there is an error among the findings.

    Raises:
        LintError: with each error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise LintError(
            "The settings would waste the run.",
            seen="; ".join(finding.seen for finding in errors),
            expected="no lint error",
            remedy="; ".join(finding.remedy for finding in errors),
            items=[f"{f.rule}: {f.seen} ({f.reference})" for f in errors],
        )
