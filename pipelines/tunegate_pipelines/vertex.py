"""Vertex AI Pipelines: its names of accelerators, and what it does not take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tunegate.contracts.errors import InputError
from tunegate.preflight.devices import DEVICES
from tunegate_pipelines.cluster import Cluster

#: GPU → its name in Vertex's API (``AcceleratorType``,
#: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/MachineSpec#AcceleratorType).
VERTEX_NAMES: Mapping[str, str] = {
    "L4": "NVIDIA_L4",
    "A100 40GB": "NVIDIA_TESLA_A100",
    "A100 80GB": "NVIDIA_A100_80GB",
    "H100": "NVIDIA_H100_80GB",
    "H200": "NVIDIA_H200_141GB",
    "B200": "NVIDIA_B200",
}

#: What of a cluster file a document for Vertex holds. All else is about pods, or about a KFP that answers requests.
TAKEN = ("accelerators", "image_prefix", "image_digests", "steps")


def vertex_name(gpu: str) -> str:
    """Vertex's name of a GPU.

    Args:
        gpu: as :mod:`tunegate.preflight.devices` calls it.

    Raises:
        InputError: when Vertex has none, or none is named.
    """
    if gpu in VERTEX_NAMES:
        return VERTEX_NAMES[gpu]
    raise InputError(
        "Vertex AI Pipelines must be told which accelerator a step runs on.",
        seen=f"{gpu!r}, which Vertex has not" if gpu else "no accelerator",
        expected=f"one of {', '.join(device.name for device in DEVICES if device.name in VERTEX_NAMES)}",
        remedy="name it in the cluster file: accelerators: [{gpu: A100 80GB}]",
    )


def refuse_kubernetes(cluster: Cluster) -> None:
    """Refuses whatever is said of a cluster and would be left out of a document for Vertex.

    Raises:
        InputError: naming it.
    """
    plain = Cluster()
    names = [field.name for field in dataclasses.fields(Cluster) if field.name not in TAKEN]
    given = [name for name in names if getattr(cluster, name) != getattr(plain, name)]
    given += [f"accelerators[{n}].node_labels" for n, kind in enumerate(cluster.kinds()) if kind.node_labels]
    given += [f"steps.{step}.timeout_seconds" for step in cluster.steps if cluster.override(step).timeout_seconds]
    if given:
        raise InputError(
            "Vertex AI Pipelines takes no settings of a Kubernetes cluster.",
            seen=", ".join(given),
            expected="a cluster file without them",
            remedy="keep a cluster file of its own for Vertex; give secrets to its service account instead",
            items=given,
        )
