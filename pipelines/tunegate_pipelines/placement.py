"""Which accelerator each step is given: the first that the cluster has and the step fits, by the memory plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.preflight.devices import Device, find_device
from tunegate.preflight.memory import RUNTIME_BYTES, USABLE_SHARE, choose
from tunegate.preflight.model_shape import model_shape
from tunegate.preflight.served_weights import plain_bytes
from tunegate_pipelines.cluster import Accelerator, Cluster
from tunegate_pipelines.platform_settings import Placement, Platform
from tunegate_pipelines.resources import REQUESTS
from tunegate_pipelines.vertex import refuse_kubernetes, vertex_name

#: What a step that loads a model holds beside its weights in 16 bits, as a share of them: activations of one batch, a
#: key-value cache. An assumption: `quantize`, `parity`, `evaluate` and `serve_check` make their batches fit.
_BESIDE_WEIGHTS = 0.2

#: What a step that loads a model needs of the host, for each byte of its weights in 16 bits: they are read, and moved.
_HOST_SHARE = 2.0

_GIB = 2**30
_MEMORY = re.compile(r"(\d+)Gi")
_LOADS_ON_HOST = ("merge",)
_PARALLEL = re.compile(r"^(?:--tensor-parallel-size|-tp)(?:[= ](\d+))?$")

KFP, VERTEX = "kfp", "vertex"
TARGETS = (KFP, VERTEX)


@dataclass(frozen=True)
class Planned:
    """What the placement follows from.

    Attributes:
        sections: step → its settings, complete; None when no recipe is at hand.
        config: the base model's ``config.json``; None when it is not at hand.
        absent: why it is not.
    """

    sections: Mapping[str, Mapping[str, Any]] | None
    config: Mapping[str, Any] | None
    absent: str = ""


def platform(cluster: Cluster, planned: Planned, *, target: str) -> Platform:
    """The platform to compile for.

    Args:
        cluster: what there is.
        planned: what will run.
        target: one of :data:`TARGETS`.

    Raises:
        InputError: when a step fits no accelerator of the cluster, or the target has none of that name.
    """
    if target == VERTEX:
        refuse_kubernetes(cluster)
    placements = {step: _placement(step, cluster, planned, target) for step in REQUESTS}
    return Platform(
        kubernetes=target == KFP,
        placements=placements,
        tolerations=tuple(
            {"key": one.key, "operator": one.operator, "value": one.value, "effect": one.effect}
            for one in cluster.tolerated()
        ),
        secrets=tuple((one.secret, one.key, one.env, one.steps) for one in cluster.secret_references()),
        volumes=tuple((one.claim, one.mount_path) for one in cluster.claims()),
        shared_memory=cluster.shared_memory if target == KFP else "",
    )


def _placement(step: str, cluster: Cluster, planned: Planned, target: str) -> Placement:
    wanted, said = REQUESTS[step], cluster.override(step)
    count = said.accelerators or max(wanted.accelerators, _parallel(step, planned)) if wanted.accelerators else 0
    if said.accelerators and planned.sections is not None:
        _refuse_unused(step, said.accelerators, _parallel(step, planned))
    gpu, labels, why = _kind(step, cluster, planned, count) if count else ("", {}, "")
    accelerator = ""
    if count:
        accelerator = vertex_name(gpu) if target == VERTEX else cluster.accelerator_resource
    return Placement(
        cpu=said.cpu or wanted.cpu,
        memory=said.memory or _host_memory(step, planned),
        accelerator=accelerator,
        accelerators=count,
        gpu=gpu,
        node_labels=labels,
        timeout_seconds=said.timeout_seconds or wanted.timeout_seconds or _standing_seconds(planned),
        retries=None if said.retries < 0 else said.retries,
        why=why,
    )


def _kind(step: str, cluster: Cluster, planned: Planned, count: int) -> tuple[str, Mapping[str, str], str]:
    """GPU, labels of its nodes, and why: the one that is named, the first that fits, or the last when nothing is known.

    Raises:
        InputError: when there are several kinds and the step fits none.
    """
    said, kinds = cluster.override(step).gpu, cluster.kinds()
    if not kinds:
        return "", {}, "the cluster file names no accelerators"
    by_name = {find_device(kind.gpu).name: kind for kind in kinds}
    if said:
        name = find_device(said).name
        return name, by_name[name].node_labels, "named in the cluster file"
    if planned.config is None or planned.sections is None:
        name, kind = list(by_name.items())[-1]
        return name, kind.node_labels, f"not planned: {planned.absent}"
    for name, kind in by_name.items():
        needed, fits = _need(step, planned, find_device(name))
        if fits:
            return name, kind.node_labels, f"{needed / 1e9:.1f} GB fit"
    raise _fits_nowhere(step, planned, by_name, count)


def _need(step: str, planned: Planned, device: Device) -> tuple[int, bool]:
    """Bytes that a step holds on each device that it uses, and whether they fit."""
    assert planned.config is not None and planned.sections is not None
    if step == "train":
        choice = choose(planned.config, planned.sections["train"], device="cuda", available_bytes=device.memory_bytes)
        return choice.plan.peak_bytes, choice.fits
    weights = plain_bytes(model_shape(planned.config))
    needed = round(weights * (1 + _BESIDE_WEIGHTS) / _parallel(step, planned)) + RUNTIME_BYTES["cuda"]
    return needed, needed <= device.memory_bytes * USABLE_SHARE


def _parallel(step: str, planned: Planned) -> int:
    """How many devices the engine is told to use, where the check before promotion runs it."""
    options = list(planned.sections["serving"]["options"]) if planned.sections and step == "serve_check" else []
    for index, option in enumerate(options):
        if found := _PARALLEL.match(str(option)):
            value = found[1] or (options[index + 1] if index + 1 < len(options) else "1")
            return int(value) if str(value).isdigit() else 1
    return 1


def _refuse_unused(step: str, given: int, used: int) -> None:
    if given != used:
        raise InputError(
            f"cluster.steps.{step}.accelerators is not what the step uses.",
            seen=str(given),
            expected=f"{used}, as --tensor-parallel-size of serving.options says, 1 without it",
            remedy="leave it out: it follows from the recipe",
        )


def _host_memory(step: str, planned: Planned) -> str:
    """Room for about 8 B parameters, and more for more."""
    wanted = REQUESTS[step]
    loads = wanted.accelerators or step in _LOADS_ON_HOST
    found = _MEMORY.fullmatch(wanted.memory)
    if planned.config is None or not loads or not found:
        return wanted.memory
    needed = plain_bytes(model_shape(planned.config)) * _HOST_SHARE / _GIB
    return f"{max(int(found[1]), round(needed) + 16)}Gi"


def _standing_seconds(planned: Planned) -> int:
    """How long a step may stand that waits for a person: until nobody may answer, and an hour for it to say so."""
    return int(planned.sections["approve"]["expires_seconds"]) + 3600 if planned.sections else 0


def _fits_nowhere(step: str, planned: Planned, kinds: Mapping[str, Accelerator], count: int) -> InputError:
    largest = max((find_device(name) for name in kinds), key=lambda device: device.memory_bytes)
    needed, _ = _need(step, planned, largest)
    return InputError(
        f"The step {step} fits no accelerator of the cluster.",
        seen=f"{needed / 1e9:.1f} GB on each of {count}; the largest is {largest.name}, of which "
        f"{largest.memory_bytes * USABLE_SHARE / 1e9:.1f} GB can be used",
        expected="a kind that it fits",
        remedy=f"tunegate plan RECIPE --gpu '{largest.name}' says what to change; or add a larger kind to "
        f"cluster.accelerators, or name one in cluster.steps.{step}.gpu",
    )
