"""What each step asks of a cluster; none is ever cached. A local run takes the machine as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """Cores, memory and accelerators of one step: limits, so that the pod is scheduled where they are free."""

    cpu: str
    memory: str
    accelerators: int = 0


#: The Kubernetes resource that is counted.
ACCELERATOR = "nvidia.com/gpu"

_CONTROL = Request(cpu="1", memory="1Gi")

#: Step → what it asks for: room for a model of about 8 B parameters on one accelerator.
REQUESTS: Mapping[str, Request] = {
    "check": _CONTROL,
    "prepare": Request(cpu="4", memory="16Gi"),
    "train": Request(cpu="8", memory="64Gi", accelerators=1),
    "merge": Request(cpu="4", memory="64Gi"),  # 'merge_base: measure' loads what it merged
    "quantize": Request(cpu="8", memory="64Gi", accelerators=1),
    "parity": Request(cpu="8", memory="64Gi", accelerators=1),
    "evaluate": Request(cpu="8", memory="64Gi", accelerators=1),
    "serve_check": Request(cpu="8", memory="64Gi", accelerators=1),
    "gate": Request(cpu="2", memory="4Gi"),
    "request_approval": Request(cpu="2", memory="4Gi"),
    "await_approval": Request(cpu="250m", memory="512Mi"),  # it may stand for days
    "not_approved": _CONTROL,
    "decide": Request(cpu="1", memory="2Gi"),
    "promote": Request(cpu="2", memory="4Gi"),
    "refused": _CONTROL,
    "summarize": _CONTROL,
}


def request(task: Any, step: str) -> Any:
    """The task with its step's request."""
    wanted = REQUESTS[step]
    task.set_cpu_limit(wanted.cpu).set_memory_limit(wanted.memory)
    if wanted.accelerators:
        task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(wanted.accelerators)
    return task


def retried(task: Any) -> Any:
    """The task, tried again when its pod is taken away or it asks for that: it goes on from its last checkpoint.

    KFP does not tell causes apart, so that bad input is tried again as well; that costs seconds each time.
    """
    return task.set_retry(num_retries=3, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")


def uncached(task: Any) -> Any:
    """The task, run each time, as every task here is.

    KFP's cache key holds the names of input artifacts and the text of parameters, not the bytes behind them: a step
    could be skipped and hand on what was made from other rows, another base model or another installed version.
    """
    return task.set_caching_options(False)
