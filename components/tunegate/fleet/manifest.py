"""A fleet for a cluster, as documents: one Deployment for each set of adapters, named by its digest.

Another set is another Deployment beside it, never a change of this one: an adapter that was loaded under a digest stays
what it is. Pods fetch and hash the files before vLLM starts, and are not ready before every adapter has answered its
probes. With an endpoint picker (llm-d), requests name adapters by alias: the alias is rewritten to the digest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.images import SERVE
from tunegate.contracts.manifest import verify
from tunegate.contracts.settings import setting
from tunegate.fleet.build import KIND, BuiltFleet, read_built
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.flags import ServingFlags, served_dtype

PORT = 8080

_MODELS, _SCRATCH, _SHARED_MEMORY = "/models", "/tmp", "/dev/shm"
_MODULE = ["python", "-m", "tunegate.fleet.entrypoint"]

#: How long fetching, hashing, loading and answering the probes may take, as tries of the start-up probe.
_TRIES, _TRY_SECONDS = 180, 10

#: The longest name of an object whose pods Kubernetes can still name.
_NAME_LIMIT = 40
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

#: Who may ask for metrics, and is asked by the gateway: the picker's pods carry this label.
_PICKER, _PICKER_PORT = {"tunegate.dev/picker": "true"}, 9002

_GATEWAY = {"namespaceSelector": {"matchLabels": {"tunegate.dev/gateway": "true"}}}


@dataclass(frozen=True)
class ClusterFleet:
    """How a fleet is served on a cluster."""

    fleet_uri: str = setting(help="where the cluster reads the fleet: a folder in a bucket")
    base_uri: str = setting(help="where the cluster reads its base")
    name: str = setting("fleet", help="what the objects are named after")
    namespace: str = setting("", help="where; empty: where they are applied")
    image: str = setting(SERVE, help="the image that holds vLLM and tunegate")
    replicas: int = setting(1, help="servers", minimum=1)
    accelerators: int = setting(1, help="of one server", minimum=0)
    memory: str = setting("64Gi", help="of one server, as Kubernetes writes it")
    picker: str = setting("", help="service of llm-d's endpoint picker; empty: requests name digests")


def fleet_documents(folder: Path, settings: ClusterFleet, flags: ServingFlags) -> list[dict[str, Any]]:
    """The documents that serve a fleet that was built.

    Args:
        folder: what `tunegate fleet build` wrote; it lies at ``settings.fleet_uri`` too.
        settings: where and with what.
        flags: the flags of production.

    Raises:
        ArtifactError: when it does not verify.
        SettingsError: when Kubernetes could not name what is made of it, or it would compute in another dtype than its
            probes were answered in.
    """
    manifest, built = verify(folder, kind=KIND), read_built(folder)
    digest = manifest.content_digest
    _refuse_other_dtype(str(manifest.settings.get("dtype", "")), settings, flags)
    name = f"{settings.name}-{digest[:10]}"
    _refuse_other_parallelism(settings, flags)
    if len(name) > _NAME_LIMIT or not _NAME.fullmatch(name):
        raise SettingsError(
            "The fleet cannot have this name on a cluster.",
            seen=settings.name,
            expected=f"1 to {_NAME_LIMIT - 11} letters a to z, digits or '-', a letter first",
            remedy="give another --name",
        )
    labels = {"app.kubernetes.io/managed-by": "tunegate", "app.kubernetes.io/instance": name}
    labels |= {"tunegate.dev/fleet": digest[:12]}
    documents = [
        _deployment(name, labels, digest, settings, flags),
        _document("v1", "Service", name, labels, {"selector": labels, "ports": [{"name": "http", "port": PORT}]}),
        _document("networking.k8s.io/v1", "NetworkPolicy", name, labels, _policy(labels, settings)),
    ]
    if settings.picker:
        documents += [
            _document("networking.k8s.io/v1", "NetworkPolicy", f"{name}-picker", labels, _picker_policy()),
            _document("inference.networking.k8s.io/v1", "InferencePool", name, labels, _pool(labels, settings)),
            _document("llm-d.ai/v1alpha2", "InferenceModelRewrite", name, labels, _rewrite(name, built)),
        ]
    for document in documents:
        if settings.namespace:
            document["metadata"]["namespace"] = settings.namespace
    return documents


def _refuse_other_dtype(built: str, settings: ClusterFleet, flags: ServingFlags) -> None:
    served = served_dtype(flags, ServeEnvironment(Path("python"), "", cpu=not settings.accelerators))
    if served != built:
        raise SettingsError(
            "The fleet was built for servers that compute in another dtype.",
            seen=served,
            expected=built,
            remedy=f"build it again with dtype: {served} in the recipe's section 'serving'",
        )


def _refuse_other_parallelism(settings: ClusterFleet, flags: ServingFlags) -> None:
    """A server that asks for other accelerators than its vLLM spreads over never starts, or leaves some idle."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    for name in ("tensor", "pipeline", "data"):
        parser.add_argument(f"--{name}-parallel-size", dest=name, type=int, default=1)
    try:
        found, _ = parser.parse_known_args([word for option in flags.options for word in option.split()])
    except argparse.ArgumentError as error:
        raise SettingsError(
            "serving.options cannot be read.",
            seen=str(error),
            expected="whole numbers behind --tensor-parallel-size, --pipeline-parallel-size and --data-parallel-size",
            remedy="correct the recipe's section 'serving'",
        ) from error
    used = math.prod((found.tensor, found.pipeline, found.data))
    if settings.accelerators not in (0, used):  # none: a CPU
        raise SettingsError(
            "The flags of production spread a server over another number of accelerators than it would get.",
            seen=f"--accelerators {settings.accelerators}",
            expected=f"{used}: tensor {found.tensor} x pipeline {found.pipeline} x data {found.data}",
            remedy=f"give --accelerators {used}, or change serving.options in the recipe",
        )


def _deployment(
    name: str, labels: dict[str, str], digest: str, settings: ClusterFleet, flags: ServingFlags
) -> dict[str, Any]:
    models, scratch = {"name": "models", "mountPath": _MODELS}, {"name": "scratch", "mountPath": _SCRATCH}
    shared = {"name": "shared-memory", "mountPath": _SHARED_MEMORY}  # vLLM's processes talk by it: 64 MiB are too few
    closed = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    told = ["--folder", _MODELS, "--fleet", digest]
    accelerators = {"nvidia.com/gpu": str(settings.accelerators)} if settings.accelerators else {}
    well = {"httpGet": {"path": "/health", "port": PORT}, "timeoutSeconds": 10, "failureThreshold": 3}
    fetch = {
        "name": "fetch", "image": settings.image, "command": [*_MODULE, "fetch"],
        "args": [*told, "--fleet-uri", settings.fleet_uri, "--base-uri", settings.base_uri],
        "volumeMounts": [models, scratch], "securityContext": closed,
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
    }  # fmt: skip
    server = {
        "name": "vllm", "image": settings.image, "command": [*_MODULE, "serve"],
        "args": [*told, "--port", str(PORT), "--flags", json.dumps(dataclasses.asdict(flags))],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {
            "exec": {"command": [*_MODULE, "check", "--folder", _MODELS]},
            "periodSeconds": _TRY_SECONDS, "failureThreshold": _TRIES, "timeoutSeconds": 600,
        },
        "readinessProbe": {**well, "periodSeconds": 10}, "livenessProbe": {**well, "periodSeconds": 20},
        "volumeMounts": [{**models, "readOnly": True}, scratch, shared], "securityContext": closed,
        "resources": {
            "requests": {"cpu": "4", "memory": settings.memory}, "limits": {"memory": settings.memory, **accelerators},
        },
    }  # fmt: skip
    pod = {
        "serviceAccountName": "tunegate-server",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 120,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [fetch],
        "containers": [server],
        "volumes": [
            {"name": "models", "emptyDir": {}}, {"name": "scratch", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }  # fmt: skip
    spec = {
        "replicas": settings.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": 2 * _TRIES * _TRY_SECONDS,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": {"tunegate.dev/fleet": digest}}, "spec": pod},
    }
    return _document("apps/v1", "Deployment", name, labels, spec)


def _policy(labels: dict[str, str], settings: ClusterFleet) -> dict[str, Any]:
    """Servers answer the gateway, and the picker, which reads how busy each is."""
    return _ingress(
        labels, PORT, [_GATEWAY, {"podSelector": {"matchLabels": _PICKER}}] if settings.picker else [_GATEWAY]
    )


def _picker_policy() -> dict[str, Any]:
    """The gateway asks the picker for each request."""
    return _ingress(_PICKER, _PICKER_PORT, [_GATEWAY])


def _ingress(to: dict[str, str], port: int, callers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "podSelector": {"matchLabels": dict(to)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": callers, "ports": [{"protocol": "TCP", "port": port}]}],
    }


def _pool(labels: dict[str, str], settings: ClusterFleet) -> dict[str, Any]:
    picker = {"name": settings.picker, "port": {"number": _PICKER_PORT}, "failureMode": "FailClose"}
    return {"selector": {"matchLabels": labels}, "targetPorts": [{"number": PORT}], "endpointPickerRef": picker}


def _rewrite(name: str, built: BuiltFleet) -> dict[str, Any]:
    rules = [
        {
            "matches": [{"model": {"type": "Exact", "value": each.alias}}],
            "targets": [{"modelRewrite": each.served}],
        }
        for each in built.adapters
    ]
    return {"poolRef": {"name": name}, "rules": rules}


def _document(version: str, kind: str, name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}
