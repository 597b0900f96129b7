"""Rules on what comes after training: quantization, evaluation and the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunegate.contracts.schemes import AUTO_SCHEME, SCHEMES, algorithm_of, is_calibrated
from tunegate.contracts.vllm import GROUP_SIZES
from tunegate.preflight.rule import Context, Remark, Sections
from tunegate.preflight.scheme_choice import fit_format, fit_scheme, instead, quantized_widths
from tunegate.preflight.serving_targets import TARGETS
from tunegate.preflight.steps import training_rows

#: Tasks on the data set's rows → what they measure of a row; what a task of the harness measures is known only when it
#: has run.
OWN_METRICS: Mapping[str, Sequence[str]] = {"tool_call": ("exact", "valid"), "completion_perplexity": ("nll",)}


def calibrates(sections: Sections) -> bool:
    """For rules on calibration."""
    return names_scheme(sections) and is_calibrated(sections["quantize"]["scheme"], _algorithm(sections["quantize"]))


def has_groups(sections: Sections) -> bool:
    """For rules on groups of weights."""
    return names_scheme(sections) and SCHEMES[sections["quantize"]["scheme"]].grouped


def names_scheme(sections: Sections) -> bool:
    """For rules on the scheme that was named."""
    return "quantize" in sections and sections["quantize"]["scheme"] != AUTO_SCHEME


def picks_scheme(sections: Sections) -> bool:
    """For rules on a scheme that is picked."""
    return "quantize" in sections and sections["quantize"]["scheme"] == AUTO_SCHEME


def _algorithm(quantize: Mapping[str, Any]) -> str:
    return algorithm_of(quantize["scheme"], backend=quantize["backend"], asked=quantize["algorithm"])


def calibration_rows(context: Context) -> Iterator[Remark]:
    """More rows asked for than are set aside."""
    wanted, taken = (context.of(step)["num_calibration_samples"] for step in ("quantize", "prepare"))
    if wanted > taken:
        yield Remark(
            "error",
            f"quantize.num_calibration_samples {wanted}, but prepare takes {taken}",
            f"raise prepare.num_calibration_samples to {wanted}, or lower the other",
        )


def calibration_data(context: Context) -> Iterator[Remark]:
    """More rows asked for than the data set can have on its train side: quantize would refuse, after training."""
    wanted, all_rows = context.of("quantize")["num_calibration_samples"], context.sample.rows
    expected = training_rows(context)
    if wanted > expected:
        yield Remark(
            "error" if wanted > all_rows else "warning",
            f"quantize.num_calibration_samples {wanted}, and the data set has {all_rows} rows, about {expected} of "
            "them to train on",
            f"lower it to {expected * 9 // 10} or less, or give more rows",
        )


def scheme_kernel(context: Context) -> Iterator[Remark]:
    """A scheme that the serving target cannot run, or runs otherwise than it is evaluated, or nobody knows how."""
    quantize, target = context.of("quantize"), context.target
    backend = quantize["backend"]
    found = fit_format(backend, fit_scheme(quantize["scheme"], target, {}, asked=quantize["group_size"]))
    if found.served != "as evaluated":
        known = "set backend: llmcompressor, whose format was measured"
        yield Remark(
            "error" if found.served == "no" else "warning",
            f"quantize.scheme {found.scheme} on {target.name}: {found.reason} ({found.source})",
            known if found.served == "not known" else instead(target, {}),
        )


def scheme_target(context: Context) -> Iterator[Remark]:
    """Nothing to pick for: quantize would refuse, when everything before it is done."""
    if context.serving_target is None:
        yield Remark(
            "error",
            f"quantize.scheme {AUTO_SCHEME}, and quantize.serving_target does not name where the model will be served",
            f"set quantize.serving_target to one of {', '.join(TARGETS)}",
        )


def policy_task(context: Context) -> Iterator[Remark]:
    """A check of something that nobody measures: the gate could never say PASS."""
    tasks, measured = context.of("evaluate").get("tasks"), {**OWN_METRICS, **context.own_tasks}
    for check in context.of("gate").get("policy", {}).get("checks", ()):
        task, metric = check.get("task"), check.get("metric")
        if tasks is not None and task not in tasks:
            seen, known = f"a policy check of task {task}, which is not in evaluate.tasks", tasks
        elif task in measured and metric not in measured[task]:
            seen, known = f"a policy check of {task}.{metric}, which the task does not measure", measured[task]
        else:
            continue
        yield Remark("error", seen, f"use one of {', '.join(known)}")


def serving_unchecked(context: Context) -> Iterator[Remark]:
    """A policy that wants the serving engine checked, and a run that does not: the gate could only say FAIL."""
    serving = context.of("gate").get("policy", {}).get("serving")
    required = isinstance(serving, Mapping) and serving.get("required", True)
    if required and not context.of("serve_check").get("enabled"):
        yield Remark(
            "error",
            "the policy's section serving wants a check of the serving engine, and serve_check.enabled is false",
            "set serve_check.enabled to true, or required: false in the policy's section serving",
        )


def group_size(context: Context) -> Iterator[Remark]:
    """Groups that do not fit a layer: quantize would refuse, when everything before it is done."""
    asked = context.of("quantize")["group_size"]
    widths = quantized_widths(context.shape, context.of("quantize")["ignore"])
    fitting = [size for size in GROUP_SIZES if not any(width % size for width in widths.values())]
    tried = (asked,) if asked else GROUP_SIZES
    if any(not any(width % size for width in widths.values()) for size in tried):
        return
    told = ", ".join(f"{name} {width}" for name, width in widths.items() if width % tried[-1])
    yield Remark(
        "error",
        f"quantize.group_size {asked or 'one of ' + ', '.join(map(str, tried))} does not divide the inputs of {told}",
        f"set it to {fitting[0]}, or to 0 to have it picked" if fitting else "use scheme W8A8 or FP8_DYNAMIC",
    )
