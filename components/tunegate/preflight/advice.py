"""What to change when a run does not fit a GPU: what costs least first, each on top of those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.preflight.devices import DEVICES, Device
from tunegate.preflight.memory import USABLE_SHARE, MemoryPlan, plan
from tunegate.preflight.optimizers import PAGED_8BIT

#: Rows are not cut shorter than this on the way: less is another task.
SHORTEST = 512

_Train = Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """One change, with all those before it.

    Attributes:
        change: what to do, in one sentence.
        cost: what is lost by it.
        settings: the settings of ``train`` to change → their new values; empty for the last resort.
        peak_bytes: of the run with this and every earlier change.
        fits: whether that fits the GPU.
    """

    change: str
    cost: str
    settings: Mapping[str, Any]
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class _Candidate:
    change: str
    cost: str
    settings: Mapping[str, Any]


#: Gives the forms of one change, the mildest first.
_Change = Callable[[_Train], Iterator[_Candidate]]


def advise(config: Mapping[str, Any], train: _Train, gpu: Device) -> tuple[Advice, ...]:
    """The changes that make a run fit ``gpu``, in the order of what they cost: time, then quality, then money.

    A change that saves nothing is left out. Paged optimizer states count as a change here: they slow every step that
    pages, so that a run that needs them is told what would do without.

    Args:
        config: the model's ``config.json``.
        train: every setting of ``train``.
        gpu: what it should fit.

    Returns:
        Nothing when it fits as it is. Otherwise one change after the other, up to the first with which it fits; when
        none does, a larger GPU or several of them come last.

    Raises:
        InputError: for a model or settings that cannot be planned.
    """
    usable = int(gpu.memory_bytes * USABLE_SHARE)
    held = dict(train)
    peak = plan(config, held).peak_bytes
    if peak <= usable:
        return ()
    given: list[Advice] = []
    changes = list(_CHANGES)
    while peak > usable and (found := _next(config, held, changes, usable, peak)) is not None:
        change, candidate, peak = found
        changes.remove(change)
        held |= candidate.settings
        given.append(Advice(candidate.change, candidate.cost, candidate.settings, peak, peak <= usable))
    return tuple(given) if peak <= usable else (*given, _last_resort(peak))


def _next(
    config: Mapping[str, Any], held: _Train, changes: list[_Change], usable: int, peak: int
) -> tuple[_Change, _Candidate, int] | None:
    """The first change that saves anything: one that saved nothing before may save something after another."""
    for change in changes:
        best = _best(config, held, change, usable)
        if best is not None and best[1].peak_bytes < peak:
            return change, best[0], best[1].peak_bytes
    return None


def _best(
    config: Mapping[str, Any], held: _Train, change: _Change, usable: int
) -> tuple[_Candidate, MemoryPlan] | None:
    """The mildest form of a change with which the run fits, or the strongest."""
    best = None
    for candidate in change(held):
        best = candidate, plan(config, {**held, **candidate.settings})
        if best[1].peak_bytes <= usable:
            break
    return best


def _checkpointing(train: _Train) -> Iterator[_Candidate]:
    if not train["gradient_checkpointing"]:
        by_itself = train["gradient_checkpointing"] is None
        told = "compute activations twice" + (" (train does so by itself where they do not fit)" if by_itself else "")
        yield _Candidate(told, "about a third more time", {"gradient_checkpointing": True})


def _smaller_batch(train: _Train) -> Iterator[_Candidate]:
    batch, accumulated = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
    for rows in range(batch - 1, 0, -1):
        if batch % rows == 0:
            steps = accumulated * (batch // rows)
            told = f"batches of {rows} {'row' if rows == 1 else 'rows'} instead of {batch}"
            yield _Candidate(
                f"{told}, with {steps} of them for an optimizer step",
                "time on small batches; the gradient stays the same",
                {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps},
            )


def _qlora(train: _Train) -> Iterator[_Candidate]:
    method = train["method"]
    if method != "qlora":
        lost = {"lora": "", "adalora": "; every module has the same rank", "full": "; an adapter is trained"}[method]
        cost = f"time to dequantize, and the error of 4 bits in the base{lost}"
        settings: dict[str, Any] = {"method": "qlora"}
        if train["dtype"] == "float32":
            settings["dtype"] = "auto"
        yield _Candidate(f"method qlora instead of {method}: a frozen base in 4 bits", cost, settings)


def _shorter(train: _Train) -> Iterator[_Candidate]:
    length = train["max_length"] // 2
    while length >= SHORTEST:
        told = f"max_length {length:,} instead of {train['max_length']:,}"
        yield _Candidate(told, "longer rows are cut: what stands at their end is not learnt", {"max_length": length})
        length //= 2


def _paged(train: _Train) -> Iterator[_Candidate]:
    if train["optim"] != PAGED_8BIT:
        told = f"optim {PAGED_8BIT}: states in 8 bits that leave the GPU while a pass needs the room"
        yield _Candidate(told, "time whenever states move, and rounded moments", {"optim": PAGED_8BIT})


#: In the order in which they are tried. What costs only time stands before what costs quality.
_CHANGES: tuple[_Change, ...] = (
    _checkpointing,
    _smaller_batch,
    _qlora,
    _shorter,
    _paged,
)


def _last_resort(peak: int) -> Advice:
    larger = next((device for device in DEVICES if peak <= device.memory_bytes * USABLE_SHARE), None)
    if larger is not None:
        return Advice(f"a larger GPU: {larger.name} holds it with these changes", "money", {}, peak, False)
    told = "more than one GPU: no known one holds it, and a model spread over several is not planned here"
    return Advice(told, "money", {}, peak, False)
