"""The InferenceService as a document: a template from the namespace, and in it what one release is.

KServe's own rules are kept here (its TestValidateCanarySpecs, and pull request 5672): a canary is ``{predictor,
trafficPercent}`` with a name of its own, in Standard mode, without ``maxReplicas``, and of not more replicas than what
serves. Promoting is giving the stable predictor the canary's name and model; its servers go on without starting anew,
where the two are equal but for their replicas.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tunegate.contracts.errors import ConflictError, InputError, SettingsError
from tunegate.deploy.kserve.cluster import Cluster
from tunegate.deploy.kserve.release import Release

#: The key of the template's ConfigMap.
TEMPLATE_KEY = "inferenceservice.yaml"

_API_VERSION, _KIND = "serving.kserve.io/v1beta1", "InferenceService"
_MODE = "serving.kserve.io/deploymentMode"
_STOP = "serving.kserve.io/stop"

#: KServe's webhook refuses a name of the model's container, and its schema requires the key in a canary (issue 4472).
_NO_NAME = ""

#: What Kubernetes takes as a name of an object that belongs to a service.
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

_MANAGED_BY = {"app.kubernetes.io/managed-by": "tunegate"}
_ALIAS = "tunegate.dev/alias"
_VERSION, _MODEL = "tunegate.dev/version", "tunegate.dev/model"

#: What of the live metadata is not ours to say again.
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

#: The longest name of a service of Kubernetes.
_NAME_LIMIT = 63


def service_path(cluster: Cluster, service: str) -> str:
    """Where an InferenceService lies in the API."""
    return f"/apis/serving.kserve.io/v1beta1/namespaces/{cluster.namespace}/inferenceservices/{service}"


def servers_of(service: str, predictor: str) -> str:
    """The Kubernetes service of a predictor's servers, as KServe names it."""
    return f"{service}-{predictor}-predictor"


def service_name(alias: str, given: str, predictor: str) -> str:
    """The InferenceService's name.

    Raises:
        SettingsError: when KServe could not name what belongs to it.
    """
    name = given or alias.replace(".", "-").replace("_", "-")
    longest = _NAME_LIMIT - len(servers_of("", predictor))
    if len(name) > longest or not _LABEL.fullmatch(name):
        raise SettingsError(
            "The service cannot have this name.",
            seen=name,
            expected=f"1 to {longest} letters a to z, digits or '-', a letter first and no '-' last",
            remedy="set 'service' in the section 'deploy' of the recipe, or --service",
        )
    return name


def read_template(cluster: Cluster, name: str) -> dict[str, Any]:
    """The InferenceService without a model, as the environment's manifests say it.

    Raises:
        InputError: when it is absent, or cannot be served from in Standard mode.
    """
    found = cluster.read(f"/api/v1/namespaces/{cluster.namespace}/configmaps/{name}")
    wrong = "no such ConfigMap"
    if found is not None:
        try:
            document = yaml.safe_load((found.get("data") or {}).get(TEMPLATE_KEY, ""))
            wrong = _wrong_template(document)
            if not wrong:
                return dict(document)
        except yaml.YAMLError as error:
            wrong = f"{TEMPLATE_KEY}: {' '.join(str(error).split())}"
    raise InputError(
        f"The namespace {cluster.namespace} has no template of an InferenceService.",
        seen=f"ConfigMap {name}: {wrong}",
        expected=f"an {_KIND} in {TEMPLATE_KEY}, in Standard mode, with a model and without a storageUri",
        remedy="apply manifests/overlays, or name another ConfigMap as 'template' in the section 'deploy'",
    )


def _wrong_template(document: Any) -> str:
    try:
        if (document["apiVersion"], document["kind"]) != (_API_VERSION, _KIND):
            return f"{document['apiVersion']} {document['kind']}"
        if (document["metadata"].get("annotations") or {}).get(_MODE) != "Standard":
            return f"no annotation {_MODE}: Standard"
        if "canary" in document["spec"]:
            return "it holds a canary"
        if "storageUri" in document["spec"]["predictor"]["model"]:
            return "it holds a storageUri"
    except (TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@dataclasses.dataclass(frozen=True)
class Live:
    """An InferenceService as it was read.

    Attributes:
        document: all of it.
    """

    document: Mapping[str, Any]

    @property
    def predictor(self) -> dict[str, Any]:
        """What serves."""
        return dict(self.document["spec"]["predictor"])

    @property
    def name(self) -> str:
        """The name of what serves."""
        return str(self.predictor.get("name", ""))

    @property
    def version(self) -> str:
        """The version of what serves; empty when it does not say."""
        return str((self.predictor.get("annotations") or {}).get(_VERSION, ""))

    @property
    def model(self) -> str:
        """The digest under which what serves must answer; empty when it does not say."""
        return str((self.predictor.get("annotations") or {}).get(_MODEL, ""))

    @property
    def replicas(self) -> int:
        """How many servers what serves is said to have; KServe takes some away while a canary is ready."""
        return int(self.predictor.get("minReplicas", 1))

    @property
    def canaries(self) -> list[dict[str, Any]]:
        """What is tried beside it."""
        return list(self.document["spec"].get("canary") or [])

    @property
    def stopped(self) -> bool:
        """Whether KServe was told to run nothing of it."""
        return bool(self.annotations.get(_STOP) == "true")

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.document["metadata"].get("annotations") or {})

    @property
    def url(self) -> str:
        """Where users reach it; empty before KServe has said so."""
        return str((self.document.get("status") or {}).get("url", ""))

    def canary(self, name: str) -> dict[str, Any] | None:
        """The predictor of a canary; None when there is no such canary."""
        return next((dict(c["predictor"]) for c in self.canaries if c["predictor"].get("name") == name), None)

    def weight(self, name: str) -> int | None:
        """The share of the traffic that a canary is to have; None when there is no such canary."""
        return next((c["trafficPercent"] for c in self.canaries if c["predictor"].get("name") == name), None)

    def reached(self, name: str, weight: int) -> bool:
        """Whether KServe says that a canary is ready and has this share."""
        told = (self.document.get("status") or {}).get("canaryStatuses") or []
        return any((c["name"], c["ready"], c["trafficPercent"]) == (name, True, weight) for c in told)


def read_live(cluster: Cluster, service: str, alias: str) -> Live | None:
    """What is deployed; None when there is nothing of that name.

    Raises:
        InputError: when it is there and not ours to change.
    """
    found = cluster.read(service_path(cluster, service))
    if found is None:
        return None
    labels = found["metadata"].get("labels") or {}
    owner = {name: labels.get(name) for name in (*_MANAGED_BY, _ALIAS)}
    if owner != {**_MANAGED_BY, _ALIAS: alias}:
        raise InputError(
            f"The InferenceService {service} is not this alias's: it was left as it is.",
            seen=", ".join(f"{name}: {value or 'not set'}" for name, value in owner.items()),
            expected=", ".join(f"{name}: {value}" for name, value in {**_MANAGED_BY, _ALIAS: alias}.items()),
            remedy="give another name with 'service' in the section 'deploy', or --service",
        )
    return Live(found)


def predictor(template: Mapping[str, Any], release: Release, *, replicas: int) -> dict[str, Any]:
    """A predictor that serves a release: the same but for replicas, whether as a canary or as what serves."""
    made: dict[str, Any] = copy.deepcopy(template["spec"]["predictor"])
    model = made["model"]
    told = ["--expect", release.model, "--also", release.alias]
    told += ["--flags", json.dumps(dataclasses.asdict(release.flags))]
    made["name"] = release.predictor
    made["labels"] = {**made.get("labels", {}), **_MANAGED_BY, _VERSION: release.version[:12]}
    made["annotations"] = {**made.get("annotations", {}), _VERSION: release.version, _MODEL: release.model}
    made["minReplicas"] = replicas
    made.pop("maxReplicas", None)
    made["model"] = {
        **model, "name": _NO_NAME, "storageUri": release.storage_uri, "args": [*model.get("args", []), *told],
    }  # fmt: skip
    return made


def serves_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two predictors start their servers on the same model in the same way."""
    return all(one["model"].get(name) == other["model"].get(name) for name in ("storageUri", "args", "image"))


def replicas_at(weight: int, replicas: int, live: Live) -> int:
    """How many servers a share of the traffic needs, as KServe counts; one even for none, so that it can be asked.

    KServe takes no canary of more servers than what serves is said to have: it grows when it has its place.
    """
    return max(1, math.ceil(min(replicas, live.replicas) * weight / 100))


def lost(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> list[str]:
    """The fields of ``before`` that ``after`` says nothing of, by their paths; lists are whole."""
    found = []
    for name, value in before.items():
        if name not in after:
            found.append(f"{at}{name}")
        elif isinstance(value, dict) and isinstance(after[name], dict):
            found += lost(value, after[name], f"{at}{name}.")
    return found


def first(
    template: Mapping[str, Any], service: str, namespace: str, release: Release, *, replicas: int
) -> dict[str, Any]:
    """The document of a service of which nothing runs yet."""
    metadata = template["metadata"]
    return {
        "apiVersion": _API_VERSION,
        "kind": _KIND,
        "metadata": {
            "name": service,
            "namespace": namespace,
            "labels": {**metadata.get("labels", {}), **_MANAGED_BY, _ALIAS: release.alias},
            "annotations": dict(metadata["annotations"]),
        },
        "spec": {"predictor": predictor(template, release, replicas=replicas), "canary": []},
    }


def with_canary(live: Live, made: Mapping[str, Any], weight: int) -> dict[str, Any]:
    """What serves, untouched, and a canary beside it."""
    if live.predictor.get("model") is None:
        raise ConflictError(
            "What serves was replaced by something that is no model: KServe tries nothing beside that.",
            seen=", ".join(sorted(live.predictor)),
            expected="a predictor with a model, as tunegate makes it",
            remedy="remove the InferenceService, and deploy again",
        )
    return _again(live, live.predictor, [{"trafficPercent": weight, "predictor": dict(made)}])


def without_canary(live: Live, name: str) -> dict[str, Any]:
    """What serves, untouched, and this canary no longer beside it."""
    return _again(live, live.predictor, [one for one in live.canaries if one["predictor"].get("name") != name])


def alone(live: Live, replicas: int) -> dict[str, Any]:
    """What serves, on so many servers, and nothing beside it."""
    return _again(live, {**live.predictor, "minReplicas": replicas}, [])


def promoted(live: Live, made: Mapping[str, Any]) -> dict[str, Any]:
    """The canary in the place of what served."""
    return _again(live, made, [])


def stopped(live: Live) -> dict[str, Any]:
    """The same, and KServe runs nothing of it."""
    document = _again(live, live.predictor, [])
    document["metadata"]["annotations"][_STOP] = "true"
    return document


def _again(live: Live, serves: Mapping[str, Any], canaries: list[dict[str, Any]]) -> dict[str, Any]:
    """All we say of a service that is there. Its metadata stays: KServe hands it on to pods, which would start anew."""
    metadata = live.document["metadata"]
    kept = {name: value for name, value in live.annotations.items() if name not in (_STOP, _LAST_APPLIED)}
    return {
        "apiVersion": _API_VERSION,
        "kind": _KIND,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "resourceVersion": metadata["resourceVersion"],
            "labels": dict(metadata.get("labels") or {}),
            "annotations": kept,
        },
        "spec": {"predictor": dict(serves), "canary": canaries},
    }
