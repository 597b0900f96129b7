"""What each step asks of a cluster; none is ever cached. A local run takes the machine as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate_pipelines.platform_settings import apply_platform, platform_now


@dataclass(frozen=True)
class Request:
    """Cores, memory and accelerators of one step: limits, so that the pod is scheduled where they are free.

    Attributes:
        cpu, memory: as Kubernetes writes them.
        accelerators: how many.
        timeout_seconds: after which a pod hangs, and is stopped; 0 where a recipe says how long it may stand.
        cause: why trying again helps, one of :data:`RETRIES`; empty where it does not.
    """

    cpu: str
    memory: str
    accelerators: int = 0
    timeout_seconds: int = 3600
    cause: str = ""


@dataclass(frozen=True)
class Retry:
    """How often a step is tried again, and after how long."""

    count: int
    backoff: str
    factor: float
    longest: str


#: The Kubernetes resource that is counted.
ACCELERATOR = "nvidia.com/gpu"

#: Cause → how it is tried again. KFP itself does not tell causes apart: a step has that of what it does. A step that
#: judges has none: it says the same each time. Bad input costs a step with a cause some seconds each time.
RETRIES: Mapping[str, Retry] = {
    # Its pod is taken away, for days at times: it goes on from its last checkpoint, or waits on.
    "interrupted": Retry(3, "60s", 2.0, "600s"),
    # A bucket, a hub or the cluster's API did not answer: what was uploaded or asked for is found again.
    "unreachable": Retry(2, "30s", 2.0, "120s"),
}

_HOUR = 3600
_CONTROL = Request(cpu="1", memory="1Gi", timeout_seconds=_HOUR)

#: Step → what it asks for: room for a model of about 8 B parameters on one accelerator.
REQUESTS: Mapping[str, Request] = {
    "check": Request(cpu="1", memory="1Gi", timeout_seconds=_HOUR, cause="unreachable"),
    "begin_retrain": Request(cpu="2", memory="4Gi", timeout_seconds=6 * _HOUR, cause="unreachable"),
    "skipped": _CONTROL,
    "prepare": Request(cpu="4", memory="16Gi", timeout_seconds=12 * _HOUR, cause="unreachable"),
    "train": Request(cpu="8", memory="64Gi", accelerators=1, timeout_seconds=7 * 24 * _HOUR, cause="interrupted"),
    "merge": Request(cpu="4", memory="64Gi", timeout_seconds=12 * _HOUR),  # 'merge_base: measure' loads what it merged
    "quantize": Request(cpu="8", memory="64Gi", accelerators=1, timeout_seconds=24 * _HOUR),
    "parity": Request(cpu="8", memory="64Gi", accelerators=1, timeout_seconds=12 * _HOUR),
    "evaluate": Request(cpu="8", memory="64Gi", accelerators=1, timeout_seconds=24 * _HOUR, cause="unreachable"),
    "serve_check": Request(cpu="8", memory="64Gi", accelerators=1, timeout_seconds=12 * _HOUR),
    "gate": Request(cpu="2", memory="4Gi"),
    "request_approval": Request(cpu="2", memory="4Gi", timeout_seconds=12 * _HOUR, cause="unreachable"),
    "await_approval": Request(cpu="250m", memory="512Mi", timeout_seconds=0, cause="interrupted"),  # it stands for days
    "not_approved": _CONTROL,
    "decide": Request(cpu="1", memory="2Gi"),
    "promote": Request(cpu="2", memory="4Gi", timeout_seconds=12 * _HOUR, cause="unreachable"),
    # A refusal is tried again too, since KFP tells no causes apart: the step knows its attempt, and refuses at once.
    "deploy": Request(cpu="1", memory="2Gi", timeout_seconds=24 * _HOUR, cause="unreachable"),
    "refused": _CONTROL,
    "summarize": _CONTROL,
    "end_retrain": Request(cpu="1", memory="1Gi", timeout_seconds=_HOUR, cause="unreachable"),
}


#: Steps that may use more than one accelerator: the engine that will serve. Every other one loads on a single one.
ON_SEVERAL = ("serve_check",)


def claimed_seconds(timeouts: Mapping[str, int]) -> int:
    """How long a retraining holds its alias at most, when no step is tried again: its steps' time-outs, one by one.

    Args:
        timeouts: step → seconds after which it is stopped. The time for an approval is added when it begins.
    """
    after_another = ("prepare", "train", "merge", "quantize", "gate", "request_approval", "promote")
    judging = max(timeouts["parity"], timeouts["evaluate"] + timeouts["serve_check"])  # side by side
    return sum(timeouts[step] for step in after_another) + judging


def request(task: Any, step: str) -> Any:
    """The task with its step's request, and with what the platform adds that is compiled for; run each time.

    KFP's cache key holds the names of input artifacts and the text of parameters, not the bytes behind them: a step
    could be skipped and hand on what was made from other rows, another base model or another installed version.
    """
    wanted, platform = REQUESTS[step], platform_now()
    task.set_caching_options(False)
    if platform is None:
        task.set_cpu_limit(wanted.cpu).set_memory_limit(wanted.memory)
        if wanted.accelerators:
            task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(wanted.accelerators)
    else:
        apply_platform(task, step, platform)
    retry = RETRIES.get(wanted.cause)
    count = retry.count if retry else 0
    if platform is not None and (said := platform.placements[step].retries) is not None:
        retry, count = retry or RETRIES["unreachable"], said
    if retry and count:
        task.set_retry(
            count, backoff_duration=retry.backoff, backoff_factor=retry.factor, backoff_max_duration=retry.longest
        )
    return task
