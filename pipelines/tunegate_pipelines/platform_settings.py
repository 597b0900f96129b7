"""The platform that a pipeline is compiled for: what its tasks are given beyond what KFP's own format knows.

KFP traces a pipeline's function and hands it nothing but its parameters. So the platform is named by a context variable
around the tracing: :func:`compiled_for`. Without it the pipeline is the plain one, which runs on any KFP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

#: What a volume of shared memory is called in the pod.
_SHM = "tunegate-shm"


@dataclass(frozen=True)
class Placement:
    """What one step is given.

    Attributes:
        cpu, memory: as Kubernetes writes them.
        accelerator: its type: a Kubernetes resource, or Vertex's name of a GPU; empty for none.
        accelerators: how many.
        node_labels: of the nodes that it may run on.
        timeout_seconds: after which its pod is stopped; 0: never.
        retries: how often it is tried again; None: as its cause says.
        why: for whoever reads the plan.
    """

    cpu: str
    memory: str
    accelerator: str = ""
    accelerators: int = 0
    gpu: str = ""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: int = 0
    retries: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Platform:
    """A platform.

    Attributes:
        kubernetes: whether pods can be told more than KFP's own format knows; Vertex takes nothing of that.
        placements: step → what it is given, for every step.
        tolerations: keyword arguments of ``kubernetes.add_toleration``, for steps with an accelerator.
        secrets: (Secret, key, environment variable, steps or none for all).
        volumes: (claim, path), for every step.
        shared_memory: size of ``/dev/shm`` of a step with an accelerator; empty: the node's default.
    """

    kubernetes: bool
    placements: Mapping[str, Placement]
    tolerations: tuple[Mapping[str, str], ...] = ()
    secrets: tuple[tuple[str, str, str, tuple[str, ...]], ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    shared_memory: str = ""


_NOW: ContextVar[Platform | None] = ContextVar("tunegate_platform", default=None)


@contextlib.contextmanager
def compiled_for(platform: Platform | None) -> Iterator[None]:
    """Pipelines that are traced within are for this platform."""
    token = _NOW.set(platform)
    try:
        yield
    finally:
        _NOW.reset(token)


def platform_now() -> Platform | None:
    """The platform that is compiled for; None for the plain pipeline."""
    return _NOW.get()


def apply_platform(task: Any, step: str, platform: Platform) -> None:
    """Gives a task what its step is given on this platform; retries are left to the step's cause."""
    place = platform.placements[step]
    task.set_cpu_limit(place.cpu).set_memory_limit(place.memory)
    if place.accelerators:
        task.set_accelerator_type(place.accelerator).set_accelerator_limit(place.accelerators)
    if platform.kubernetes:
        _apply_kubernetes(task, step, platform, place)


def _apply_kubernetes(task: Any, step: str, platform: Platform, place: Placement) -> None:
    from kfp import kubernetes

    if place.timeout_seconds:
        kubernetes.set_timeout(task, place.timeout_seconds)
    for claim, path in platform.volumes:
        kubernetes.mount_pvc(task, pvc_name=claim, mount_path=path)
    for secret, key, variable, steps in platform.secrets:
        if not steps or step in steps:
            kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: variable})
    if not place.accelerators:
        return
    for toleration in platform.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for key, value in place.node_labels.items():
        kubernetes.add_node_selector(task, key, value)
    if platform.shared_memory:
        kubernetes.empty_dir_mount(task, _SHM, "/dev/shm", medium="Memory", size_limit=platform.shared_memory)
