"""A fleet for a cluster, as documents: one Deployment for each set of adapters, named by its digest.

Another set is another Deployment beside it, never a change of this one: an adapter that was loaded under a digest stays
what it is. Pods fetch and hash the files before vLLM starts, and are not ready before every adapter has answered its
probes. With an endpoint picker (llm-d), requests name adapters by alias: the alias is rewritten to the digest.
"""

from __future__ import annotations

import dataclasses
import json
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

_MODELS, _SCRATCH = "/models", "/tmp"
_MODULE = ["python", "-m", "tunegate.fleet.entrypoint"]

#: How long fetching, hashing, loading and answering the probes may take, as tries of the start-up probe.
_TRIES, _TRY_SECONDS = 180, 10

#: The longest name of an object whose pods Kubernetes can still name.
_NAME_LIMIT = 40


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
    if len(name) > _NAME_LIMIT or not name.replace("-", "").isalnum() or name != name.lower() or not name[0].isalpha():
        raise SettingsError(
            "The fleet cannot have this name on a cluster.",
            seen=settings.name,
            expected=f"1 to {_NAME_LIMIT - 11} lower-case letters, digits or '-', a letter first",
            remedy="give another --name",
        )
    labels = {"app.kubernetes.io/managed-by": "tunegate", "tunegate.dev/fleet": digest[:12]}
    documents = [
        _deployment(name, labels, digest, settings, flags),
        _document("v1", "Service", name, labels, {"selector": labels, "ports": [{"name": "http", "port": PORT}]}),
        _document("networking.k8s.io/v1", "NetworkPolicy", name, labels, _policy(labels)),
    ]
    if settings.picker:
        documents += [
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


def _deployment(
    name: str, labels: dict[str, str], digest: str, settings: ClusterFleet, flags: ServingFlags
) -> dict[str, Any]:
    models, scratch = {"name": "models", "mountPath": _MODELS}, {"name": "scratch", "mountPath": _SCRATCH}
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
        "volumeMounts": [{**models, "readOnly": True}, scratch], "securityContext": closed,
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
        "volumes": [{"name": "models", "emptyDir": {}}, {"name": "scratch", "emptyDir": {}}],
    }  # fmt: skip
    spec = {
        "replicas": settings.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": 2 * _TRIES * _TRY_SECONDS,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": {"tunegate.dev/fleet": digest}}, "spec": pod},
    }
    return _document("apps/v1", "Deployment", name, labels, spec)


def _policy(labels: dict[str, str]) -> dict[str, Any]:
    gateway = {"namespaceSelector": {"matchLabels": {"tunegate.dev/gateway": "true"}}}
    return {
        "podSelector": {"matchLabels": labels},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [gateway], "ports": [{"protocol": "TCP", "port": PORT}]}],
    }


def _pool(labels: dict[str, str], settings: ClusterFleet) -> dict[str, Any]:
    picker = {"name": settings.picker, "port": {"number": 9002}, "failureMode": "FailClose"}
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
