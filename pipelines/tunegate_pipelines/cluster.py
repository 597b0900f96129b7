"""A cluster file: where KFP answers, and what its nodes have. One for each environment, beside any number of recipes.

::

    host: https://kfp.example.com
    namespace: team-a
    token_env: KFP_TOKEN              # the variable that holds the token; the token itself stands nowhere
    accelerators:                     # in the order in which they should be taken
      - {gpu: L4, node_labels: {cloud.google.com/gke-accelerator: nvidia-l4}}
      - {gpu: A100 80GB, node_labels: {cloud.google.com/gke-accelerator: nvidia-a100-80gb}}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
    secrets: [{secret: hub, key: token, env: HF_TOKEN}]
    volumes: [{claim: models, mount_path: /models}]
    steps: {train: {timeout_seconds: 86400}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import parse_settings, refuse_unknown_keys, setting
from tunegate.preflight.devices import find_device
from tunegate_pipelines.resources import ON_SEVERAL, REQUESTS
from tunegate_pipelines.yaml_file import read_yaml_object

T = TypeVar("T")


@dataclass(frozen=True)
class Accelerator:
    """A kind of accelerator that the cluster has."""

    gpu: str = setting(help="a GPU that `tunegate plan` knows: L4, A100 80GB, H100, …")
    node_labels: Mapping[str, str] = setting(
        default_factory=dict, help="labels of the nodes that have it, where the cluster has several kinds"
    )


@dataclass(frozen=True)
class Toleration:
    """A taint that the steps with an accelerator tolerate."""

    key: str = setting("", help="the taint's key; empty: every taint")
    operator: str = setting("Equal", choices=("Equal", "Exists"), help="how the value is compared")
    value: str = setting("", help="the taint's value")
    effect: str = setting("", choices=("", "NoSchedule", "PreferNoSchedule", "NoExecute"), help="empty: every effect")


@dataclass(frozen=True)
class SecretReference:
    """A key of a Kubernetes Secret as an environment variable; its value is never known here."""

    secret: str = setting(help="name of the Secret, which lies in the namespace of the runs")
    key: str = setting(help="key in it")
    env: str = setting(help="environment variable that it becomes")
    steps: tuple[str, ...] = setting((), help="the steps that are given it; none named: all")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim that every step sees."""

    claim: str = setting(help="name of the PersistentVolumeClaim")
    mount_path: str = setting(help="where it is mounted")


@dataclass(frozen=True)
class StepOverride:
    """What one step asks for, where it should not be what is planned."""

    gpu: str = setting("", help="a GPU of `accelerators`")
    accelerators: int = setting(0, minimum=0, maximum=16, help="how many of them; 0: as planned")
    cpu: str = setting("", help="cores, as Kubernetes writes them")
    memory: str = setting("", help="memory, as Kubernetes writes it")
    timeout_seconds: int = setting(0, minimum=0, unit="seconds", help="after which its pod is stopped; 0: the default")
    retries: int = setting(-1, minimum=-1, maximum=10, help="how often it is tried again; -1: the default of its cause")


@dataclass(frozen=True)
class Cluster:
    """Where KFP answers, and what its nodes have."""

    host: str = setting("", help="KFP's address; empty: KF_PIPELINES_ENDPOINT, else that of this pod or kube config")
    ui_host: str = setting("", help="the UI's address where it is another one")
    ca_file: str = setting("", help="the authority that signed the address's certificate, a PEM file")
    namespace: str = setting("", help="namespace of the runs in a KFP with several users")
    token_env: str = setting("", help="environment variable that holds a bearer token for KFP")
    token_file: str = setting("", help="or a file that holds one, read for each request: a long run outlives a token")
    experiment: str = setting("tunegate", help="experiment in which runs appear")
    service_account: str = setting("", help="Kubernetes service account of the runs; empty: KFP's own")
    pipeline_root: str = setting("", help="where artifacts are kept; empty: KFP's own")
    image_prefix: str = setting("", help="put before each image's name")
    image_digests: str = setting("", help="what images/build.sh wrote, beside this file")
    accelerator_resource: str = setting("nvidia.com/gpu", help="the Kubernetes resource that is counted")
    accelerators: tuple[Mapping[str, Any], ...] = setting((), help="kinds, in the order in which they are taken")
    tolerations: tuple[Mapping[str, Any], ...] = setting((), help="taints of the nodes with accelerators")
    secrets: tuple[Mapping[str, Any], ...] = setting((), help="Secrets, by reference")
    volumes: tuple[Mapping[str, Any], ...] = setting((), help="PersistentVolumeClaims that every step sees")
    shared_memory: str = setting("16Gi", help="/dev/shm of a step with an accelerator; empty: the node's 64 MiB")
    steps: Mapping[str, Mapping[str, Any]] = setting(default_factory=dict, help="what single steps ask for instead")

    def kinds(self) -> tuple[Accelerator, ...]:
        """The kinds of accelerator."""
        return _each(Accelerator, self.accelerators, "accelerators")

    def tolerated(self) -> tuple[Toleration, ...]:
        """The taints."""
        return _each(Toleration, self.tolerations, "tolerations")

    def secret_references(self) -> tuple[SecretReference, ...]:
        """The Secrets."""
        return _each(SecretReference, self.secrets, "secrets")

    def claims(self) -> tuple[Volume, ...]:
        """The volumes."""
        return _each(Volume, self.volumes, "volumes")

    def override(self, step: str) -> StepOverride:
        """What is said of one step."""
        return parse_settings(StepOverride, self.steps.get(step, {}), where=f"cluster.steps.{step}")


def read_cluster(path: Path) -> Cluster:
    """Reads a cluster file; every part of it is checked here.

    Raises:
        SettingsError: when it cannot be read, or names something unknown.
    """
    cluster = parse_settings(Cluster, read_yaml_object(path, what="cluster file"), where="cluster")
    refuse_unknown_keys(cluster.steps, known=REQUESTS, where="cluster.steps")
    if cluster.token_env and cluster.token_file:
        raise SettingsError(
            "The token for KFP is said to lie in two places.",
            seen="token_env and token_file",
            expected="one of them",
            remedy="leave one out",
        )
    known = [find_device(kind.gpu).name for kind in cluster.kinds()]
    for step in cluster.steps:
        wanted = cluster.override(step)
        if wanted.gpu and find_device(wanted.gpu).name not in known:
            raise SettingsError(
                f"cluster.steps.{step}.gpu is no accelerator of the cluster.",
                seen=repr(wanted.gpu),
                expected=f"one of {', '.join(known) or 'cluster.accelerators, which is empty'}",
                remedy="add it to cluster.accelerators, with the labels of its nodes",
            )
        if (wanted.gpu or wanted.accelerators) and not REQUESTS[step].accelerators:
            raise SettingsError(
                f"cluster.steps.{step} names an accelerator for a step that uses none.",
                seen=repr(wanted.gpu or wanted.accelerators),
                expected=f"one of {', '.join(name for name, request in REQUESTS.items() if request.accelerators)}",
                remedy="leave gpu and accelerators out",
            )
        if wanted.accelerators > 1 and step not in ON_SEVERAL:
            raise SettingsError(
                f"cluster.steps.{step}.accelerators is more than the step uses.",
                seen=str(wanted.accelerators),
                expected=f"1: only {', '.join(ON_SEVERAL)} uses several, as serving.options tells the engine",
                remedy="leave it out, and name a larger kind in gpu where one is too small",
            )
    for secret in cluster.secret_references():
        refuse_unknown_keys(dict.fromkeys(secret.steps), known=REQUESTS, where="cluster.secrets.steps")
    for _ in (cluster.tolerated(), cluster.claims()):  # parsed, so that a mistake is found before anything is sent
        pass
    if cluster.image_digests:
        return dataclasses.replace(cluster, image_digests=str(path.parent / cluster.image_digests))
    return cluster


def _each(cls: type[T], values: tuple[Mapping[str, Any], ...], name: str) -> tuple[T, ...]:
    return tuple(parse_settings(cls, value, where=f"cluster.{name}[{index}]") for index, value in enumerate(values))
