"""Rules on AdaLoRA's ranks and schedule: without steps in which it prunes, it is a LoRA with a wrong rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunegate.preflight.rule import Context, Remark, Sections
from tunegate.preflight.steps import run_steps

#: Train's shares of the run, in tenths, where no steps are given.
_TINIT_TENTHS, _TFINAL_TENTHS = 1, 3


def allocates_ranks(sections: Sections) -> bool:
    """For rules on AdaLoRA."""
    return bool(sections["train"]["method"] == "adalora")


def adalora_ranks(context: Context) -> Iterator[Remark]:
    """No rank to prune."""
    r, init_r = context.of("train")["r"], context.of("train")["init_r"]
    if init_r <= r:
        yield Remark(
            "error",
            f"train.init_r {init_r} is not above r {r}, the average rank that pruning leaves",
            f"set init_r to {r + (r + 1) // 2}, one and a half times r",
        )


def adalora_rslora(context: Context) -> Iterator[Remark]:
    """A scale that AdaLoRA does not have; train would refuse it."""
    if context.of("train")["use_rslora"]:
        yield Remark(
            "error",
            "train.use_rslora with method adalora, which scales by lora_alpha / init_r whatever it says",
            "set use_rslora: false, and a higher lora_alpha for a stronger update",
        )


def adalora_budget(context: Context) -> Iterator[Remark]:
    """No steps in which ranks could be pruned."""
    train, steps = context.of("train"), run_steps(context)
    if broken := schedule_problem(steps.at_most, train):
        yield Remark("error", f"{broken} even if every row were trained on", _REMEDY)
    elif broken := schedule_problem(steps.expected, train):
        yield Remark("warning", f"{broken} if as many rows are trained on as the fractions say", _REMEDY)


_REMEDY = "lower train.tinit, tfinal or deltaT, train longer, or use lora"


def schedule_problem(total: int, train: Mapping[str, Any]) -> str:
    """What is wrong with AdaLoRA's schedule over ``total`` optimizer steps; empty when ranks can be pruned.

    Pruning needs tinit < total − tfinal (arXiv:2303.10512, section 3.3), two steps before the last tfinal ones, and
    one allocation at the least.
    """
    tinit = total * _TINIT_TENTHS // 10 if train["tinit"] is None else train["tinit"]
    tfinal = total * _TFINAL_TENTHS // 10 if train["tfinal"] is None else train["tfinal"]
    last = total - tfinal
    if tinit >= last or last < 2:
        return f"train.tinit {tinit} and tfinal {tfinal} leave no step to prune in: the run has {total}"
    if train["deltaT"] > last - tinit:
        return f"train.deltaT {train['deltaT']} is longer than the {last - tinit} steps in which ranks are pruned"
    return ""
