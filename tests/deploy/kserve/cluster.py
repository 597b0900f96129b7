"""Stands in for a cluster: its API with versions, owners of fields and refusals, and KServe's controller behind it.

Held to what is known of both: documents against KServe's own schema, KServe's admission rules (its
TestValidateCanarySpecs and TestValidatePredictorNameChange), server-side apply with conflicts, and the way in which a
canary's servers become those that serve without starting anew. No image runs: a pod is a :class:`servers.Pod`.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.deploy.kserve.schema import inference_service, wrong
from tests.deploy.kserve.servers import Behaviour, Pod

TOKEN = "a-token-that-nobody-may-see"
_ISVC = re.compile(r"/apis/serving\.kserve\.io/v1beta1/namespaces/[^/]+/inferenceservices/(?P<name>[^/]+)")
_OBJECT = re.compile(r"/api(s/coordination\.k8s\.io)?/v1/namespaces/[^/]+/(leases|configmaps)(/(?P<name>[^/]+))?")
_SLICES = re.compile(r"/apis/discovery\.k8s\.io/v1/namespaces/[^/]+/endpointslices")


@dataclass
class Fault:
    """An answer in the place of the API's own.

    Attributes:
        asked: method and path, as a regular expression.
        code: what is answered.
        times: how often; negative: always.
        after: whether the request is carried out, and only its answer lost.
        message: what the refusal says.
    """

    asked: str
    code: int
    times: int = 1
    after: bool = False
    message: str = "the server could not be reached"


@dataclass
class FakeCluster:
    """All of it.

    Attributes:
        objects: path → object.
        owners: path of an object → field → who set it.
        behaviours: digest → how its servers behave.
        pods: Kubernetes service → its servers, with the spec that they were started from.
        faults: what goes wrong.
        applied: the InferenceServices that were applied, in order.
        on_apply: called with each of those, before it is answered.
        started: Kubernetes service → how often its servers were started.
        splits: whether KServe ever reports that it split the traffic.
        start_pod: what a container is started with → the pod that it makes.
    """

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    pods: dict[str, tuple[str, list[Pod]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    applied: list[dict[str, Any]] = field(default_factory=list)
    on_apply: Callable[[dict[str, Any]], None] = lambda document: None
    started: dict[str, int] = field(default_factory=dict)
    splits: bool = True
    start_pod: Callable[[list[str]], Any] | None = None
    seen: list[str] = field(default_factory=list)
    _version: int = 0
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for _, pods in self.pods.values():
            for pod in pods:
                pod.stop()

    def put(self, path: str, document: dict[str, Any], owner: str = "kubectl") -> None:
        """Writes an object as somebody else does; the fields that change are that one's from then on."""
        with self._lock:
            before = self.objects.get(path, {})
            self._store(path, copy.deepcopy(document))
            owners = self.owners.setdefault(path, {})
            old = dict(_leaves(before))
            for leaf, value in _leaves(document):
                if old.get(leaf) != value:
                    owners[leaf] = {owner}

    def service(self, name: str = "champion") -> dict[str, Any]:
        """An InferenceService."""
        return self.objects[f"/apis/serving.kserve.io/v1beta1/namespaces/tunegate-prod/inferenceservices/{name}"]

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """What the API answers."""
        with self._lock:
            self.seen.append(f"{method} {path}")
            fault = next((one for one in self.faults if one.times and re.search(one.asked, f"{method} {path}")), None)
            if fault is not None:
                fault.times -= 1
                if fault.after:
                    self._carried_out(method, path, query, body)
                return fault.code, _status(fault.code, "Fault", fault.message)
            return self._carried_out(method, path, query, body)

    def _carried_out(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if found := _ISVC.fullmatch(path):
            if method == "GET":
                self._reconcile(path)
                return self._read(path)
            if method == "PATCH":
                return self._apply(path, found["name"], query, body)
        if _SLICES.fullmatch(path) and method == "GET":
            return 200, {"kind": "EndpointSliceList", "items": self._slices(query)}
        if found := _OBJECT.fullmatch(path):
            if method == "GET":
                return self._read(path)
            if method == "POST" and not found["name"]:
                own = f"{path}/{body['metadata']['name']}"
                if own in self.objects:
                    return 409, _status(409, "AlreadyExists", "already exists")
                return 201, self._store(own, body)
            if method == "PUT" and path in self.objects:
                if body["metadata"].get("resourceVersion") != self.objects[path]["metadata"]["resourceVersion"]:
                    return 409, _status(409, "Conflict", "the object has been modified")
                return 200, self._store(path, body)
        return 404, "404 page not found"

    def _read(self, path: str) -> tuple[int, Any]:
        if path not in self.objects:
            return 404, _status(404, "NotFound", f"{path.rpartition('/')[2]!r} not found")
        return 200, self.objects[path]

    def _store(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        before = self.objects.get(path, {})
        metadata = {**document["metadata"], "resourceVersion": str(self._version)}
        changed = before.get("spec") != document.get("spec")
        metadata["generation"] = before.get("metadata", {}).get("generation", 0) + changed
        self.objects[path] = {**document, "metadata": metadata}
        return self.objects[path]

    def _apply(self, path: str, name: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        """Server-side apply: fields of others with other values are conflicts, own fields that are not said go."""
        assert (query["force"], query["fieldValidation"]) == ("false", "Strict")
        manager, before = query["fieldManager"], self.objects.get(path)
        stated = body["metadata"].get("resourceVersion")
        if stated is not None and (before is None or before["metadata"]["resourceVersion"] != stated):
            return 409, _status(409, "Conflict", "the object has been modified; please apply your changes again")
        if problems := list(wrong(body, inference_service())):
            return 422, _status(422, "Invalid", "; ".join(problems))
        rehearsal = query.get("dryRun") == "All"
        owners = self.owners.setdefault(path, {})
        owners = copy.deepcopy(owners) if rehearsal else owners
        made = copy.deepcopy(before or {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": {}})
        made["metadata"] |= {"name": name, "namespace": path.split("/")[5]}
        said, there = dict(_leaves(body)), dict(_leaves(made))
        conflicts = [
            {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{min(owners[leaf])}"',
                "field": ".".join(leaf),
            }
            for leaf, value in said.items()
            if owners.get(leaf, {manager}) - {manager} and there.get(leaf) != value
        ]
        if conflicts:
            return 409, _status(409, "Conflict", "Apply failed", causes=conflicts)
        for leaf in [leaf for leaf, who in owners.items() if manager in who and leaf not in said]:
            owners[leaf].discard(manager)
            if not owners[leaf]:
                del owners[leaf]
                _remove(made, leaf)
        for leaf, value in said.items():
            owners.setdefault(leaf, set()).add(manager)
            _set(made, leaf, value)
        if refused := _refused_by_kserve(before, made):
            denied = (
                f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {refused}'
            )
            return 400, _status(400, "BadRequest", denied)
        if rehearsal:
            return 200, made
        stored = self._store(path, made) if made != before else before
        self.applied.append(copy.deepcopy(stored))
        self._reconcile(path)
        self.on_apply(self.objects[path])
        return 200, self.objects[path]

    def _reconcile(self, path: str) -> None:
        """KServe's controller: servers for each predictor, and a status, which is a write as well."""
        if path not in self.objects:
            return
        isvc = self.objects[path]
        name, spec = isvc["metadata"]["name"], isvc["spec"]
        stopped = (isvc["metadata"].get("annotations") or {}).get("serving.kserve.io/stop") == "true"
        wanted = [] if stopped else [spec["predictor"], *(canary["predictor"] for canary in spec.get("canary", []))]
        handed_on = isvc["metadata"].get("annotations")
        servers = {f"{name}-{one['name']}-predictor": one for one in wanted}
        for gone in [one for one in self.pods if one.startswith(f"{name}-") and one not in servers]:
            for pod in self.pods.pop(gone)[1]:
                pod.stop()
        for service, one in servers.items():
            if one is not spec["predictor"]:
                self._scale(service, one, handed_on, one.get("minReplicas", 1))
        told = []
        for canary in spec.get("canary", []):
            ready = self.splits and bool(self._ready(f"{name}-{canary['predictor']['name']}-predictor"))
            told.append(
                {"name": canary["predictor"]["name"], "ready": ready, "trafficPercent": canary["trafficPercent"]}
            )
        if (
            not stopped
        ):  # KServe's TestAdjustStableMinReplicasForCanaries: those of canaries that are ready, down to one
            ready = {one["name"] for one in told if one["ready"]}
            taken = sum(
                one["predictor"].get("minReplicas", 1)
                for one in spec.get("canary", [])
                if one["predictor"]["name"] in ready
            )
            stable = spec["predictor"]
            count = max(stable.get("minReplicas", 1) - taken, 1)
            self._scale(f"{name}-{stable['name']}-predictor", stable, handed_on, count)
        status = {"url": f"http://{name}.example.com", "canaryStatuses": told, "conditions": []}
        if not all(self._ready(service) for service in servers):
            status["modelStatus"] = {
                "transitionStatus": "BlockedByFailedLoad",
                "lastFailureInfo": {
                    "reason": "ModelLoadFailed",
                    "message": "ArtifactError: other bytes",
                    "exitCode": 2,
                },
            }
            status["conditions"] = [
                {"type": "PredictorReady", "status": "False", "reason": "MinimumReplicasUnavailable"}
            ]
        assert not list(wrong({"spec": spec, "status": status}, inference_service()))
        if isvc.get("status") != status:
            self._store(path, {**isvc, "status": status})

    def _scale(self, service: str, predictor: dict[str, Any], handed_on: Any, count: int) -> None:
        """As many servers as are wanted; all anew when what they were started from has changed."""
        template = json.dumps([{k: v for k, v in predictor.items() if k != "minReplicas"}, handed_on], sort_keys=True)
        before, pods = self.pods.get(service, ("", []))
        if before != template:
            for pod in pods:
                pod.stop()
            pods = []
            self.started[service] = self.started.get(service, 0) + 1
        args = predictor["model"]["args"]
        while len(pods) > count:
            pods.pop().stop()
        while len(pods) < count:
            pods.append((self.start_pod or self._stand_in)(args))
        self.pods[service] = (template, pods)

    def _stand_in(self, args: list[str]) -> Pod:
        model = args[args.index("--expect") + 1]
        alias = args[args.index("--also") + 1] if "--also" in args else "none"
        return Pod(model, self.behaviours.setdefault(model, Behaviour()), alias)

    def _ready(self, service: str) -> list[Pod]:
        return [pod for pod in self.pods.get(service, ("", []))[1] if pod.ready]

    def _slices(self, query: dict[str, str]) -> list[dict[str, Any]]:
        service = query["labelSelector"].removeprefix("kubernetes.io/service-name=")
        return [
            {
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": pod.port, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": pod.ready}}],
            }
            for pod in self.pods.get(service, ("", []))[1]
        ]


def _refused_by_kserve(before: dict[str, Any] | None, made: dict[str, Any]) -> str:
    """The rules of KServe's admission webhook for predictors and canaries."""
    stable, canaries = made["spec"]["predictor"], made["spec"].get("canary", [])
    if stable["model"].get("name"):  # validatePredictor, issue 4472
        return "the 'name' field is not allowed in standard predictor"
    names = [canary["predictor"].get("name") for canary in canaries]
    if before is not None:
        old = before["spec"]["predictor"]
        if old.get("name") != stable.get("name") and old["model"]["storageUri"] == stable["model"]["storageUri"]:
            return "predictor.name change requires a model change (e.g. storageUri)"
    if not canaries:
        return ""
    if made["metadata"]["annotations"].get("serving.kserve.io/deploymentMode") != "Standard":
        return "canary is only supported in Standard deployment mode"
    if not all(names) or len({*names, stable.get("name")}) <= len(names):
        return "predictor.name is required, and neither duplicated nor that of the stable predictor"
    if sum(canary["trafficPercent"] for canary in canaries) > 100:
        return "the sum of trafficPercent must be <= 100"
    for canary in canaries:
        if "maxReplicas" in canary["predictor"]:
            return "canary must not set maxReplicas"
        if canary["predictor"].get("minReplicas", 0) > stable.get("minReplicas", 1):
            return "canary minReplicas must not exceed stable minReplicas"
    return ""


def _leaves(document: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field with an owner: lists are atomic, as those of an InferenceService that we write are."""
    for name, value in document.items():
        here = (*at, name)
        if here in {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")} or here[:1] == (
            "status",
        ):
            continue
        if here in {("metadata", "resourceVersion"), ("metadata", "generation")}:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, here)
        else:
            yield here, value


def _set(document: dict[str, Any], leaf: tuple[str, ...], value: Any) -> None:
    for name in leaf[:-1]:
        document = document.setdefault(name, {})
    document[leaf[-1]] = copy.deepcopy(value)


def _remove(document: dict[str, Any], leaf: tuple[str, ...]) -> None:
    for name in leaf[:-1]:
        document = document.get(name, {})
    document.pop(leaf[-1], None)


def _status(code: int, reason: str, message: str, causes: list[dict[str, str]] | None = None) -> dict[str, Any]:
    details = {"causes": causes} if causes else {}
    return {
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


def _handler(cluster: FakeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                code, said = 401, _status(401, "Unauthorized", "Unauthorized")
            else:
                if self.command == "PATCH":
                    assert self.headers["Content-Type"] == "application/apply-patch+yaml"
                    assert isinstance(body, dict)
                code, said = cluster.answer(self.command, parts.path, dict(parse_qsl(parts.query)), body)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = _answer  # noqa: N815 - http.server's names

    return Handler
