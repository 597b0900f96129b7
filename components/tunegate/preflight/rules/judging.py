"""Rules on what comes after training: quantization, evaluation and the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunegate.contracts.schemes import SCHEMES, algorithm_of, is_calibrated
from tunegate.preflight.rule import Context, Remark, Sections

#: Our own tasks → what they measure of a row; what a task of the harness measures is known only when it has run.
OWN_METRICS: Mapping[str, Sequence[str]] = {"tool_call": ("exact", "valid"), "completion_perplexity": ("nll",)}

#: What ``quantize`` picks from where no group size is set.
GROUP_SIZES = (128, 64, 32)


def calibrates(sections: Sections) -> bool:
    """For rules on calibration."""
    return "quantize" in sections and is_calibrated(sections["quantize"]["scheme"], _algorithm(sections["quantize"]))


def has_groups(sections: Sections) -> bool:
    """For rules on groups of weights."""
    return "quantize" in sections and SCHEMES[sections["quantize"]["scheme"]].grouped


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


def policy_task(context: Context) -> Iterator[Remark]:
    """A check of something that nobody measures: the gate could never say PASS."""
    tasks = context.of("evaluate").get("tasks")
    for check in context.of("gate").get("policy", {}).get("checks", ()):
        task, metric = check.get("task"), check.get("metric")
        if tasks is not None and task not in tasks:
            seen, known = f"a policy check of task {task}, which is not in evaluate.tasks", tasks
        elif task in OWN_METRICS and metric not in OWN_METRICS[task]:
            seen, known = f"a policy check of {task}.{metric}, which the task does not measure", OWN_METRICS[task]
        else:
            continue
        yield Remark("error", seen, f"use one of {', '.join(known)}")


def group_size(context: Context) -> Iterator[Remark]:
    """Groups that do not fit a layer: quantize would refuse, when everything before it is done."""
    asked, ignored = context.of("quantize")["group_size"], context.of("quantize")["ignore"]
    widths = {
        linear.name: linear.inputs
        for linear in context.shape.linears
        if not any(linear.name in pattern or pattern.startswith("re:") for pattern in ignored)
    }
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
