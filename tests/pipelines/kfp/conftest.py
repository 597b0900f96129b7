"""A KFP API server in a thread, of which every request and every answer is held against KFP's REST description.

``kfp_api.json`` is the part of that description that tunegate uses, without words. What does not fit it is answered
with 400 and fails the test at its end, whatever the test itself looks at.
"""

from __future__ import annotations

import datetime
import email
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

DESCRIPTION = json.loads((Path(__file__).with_name("kfp_api.json")).read_text("utf-8"))
_TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}


def violations(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    """What of a JSON value does not fit a schema of the description: unknown keys, types, words, times."""
    if "$ref" in schema:
        schema = DESCRIPTION["definitions"][schema["$ref"].rpartition("/")[2]]
    wanted = schema.get("type", "object")
    if schema.get("format") == "int64":  # protobuf's JSON writes a string, and reads a number too
        whole = isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d+", value))
        return [] if whole else [f"{where}: {value!r} is no int64"]
    if not isinstance(value, _TYPES[wanted]) or (wanted != "boolean" and isinstance(value, bool)):
        return [f"{where}: {value!r} is no {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if schema.get("format") == "date-time":
        datetime.datetime.fromisoformat(value)
    if wanted == "array":
        return [one for n, item in enumerate(value) for one in violations(item, schema["items"], f"{where}[{n}]")]
    if wanted != "object" or "properties" not in schema:  # KFP leaves a pipeline spec open
        inner = schema.get("additionalProperties")
        return (
            [one for k, v in value.items() for one in violations(v, inner, f"{where}.{k}")]
            if inner and isinstance(value, dict) and inner.get("type") != "object"
            else []
        )
    known = schema["properties"]
    found = [f"{where}.{key}: unknown" for key in value if key not in known]
    return found + [one for k, v in value.items() if k in known for one in violations(v, known[k], f"{where}.{k}")]


@dataclass
class Asked:
    """A request that came."""

    operation: str
    path: dict[str, str]
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    raw: bytes


@dataclass
class Kfp:
    """The server's state, and what a test tells it."""

    url: str = ""
    token: str = ""
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    faults: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    script: list[dict[str, Any]] = field(default_factory=list)
    page_size: int = 100
    looked: Callable[[], None] = lambda: None

    def fail(self, operation: str, status: int, message: str = "no", times: int = 1) -> None:
        """Answers the next requests of an operation with an error."""
        self.faults.setdefault(operation, []).extend([(status, message)] * times)

    def will(self, state: str, *tasks: tuple[str, str], error: str = "") -> None:
        """What the next look at a run shows; the last one stays."""
        details = [
            {
                "run_id": "run-0", "task_id": name, "display_name": name, "state": task_state,
                "create_time": "2026-11-29T12:00:00Z", "start_time": f"2026-11-29T12:00:{n:02}Z",
                "end_time": "2026-11-29T12:03:00Z",
                **({"error": {"code": 13, "message": error}} if error and task_state == "FAILED" else {}),
            }
            for n, (name, task_state) in enumerate(tasks)
        ]  # fmt: skip
        self.script.append({"state": state, "run_details": {"task_details": details}})

    def of(self, operation: str) -> list[Asked]:
        """The requests of one operation."""
        return [one for one in self.asked if one.operation == operation]


@dataclass
class _Refused(Exception):
    status: int
    message: str


def _filtered(rows: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", ()):
        assert predicate["operation"] in (1, "EQUALS"), predicate
        rows = [row for row in rows if row.get(predicate["key"]) == predicate["stringValue"]]
    return rows


class _Answers:
    """What each operation does."""

    def __init__(self, kfp: Kfp) -> None:
        self._kfp = kfp

    def healthz_service_get_healthz(self, asked: Asked) -> Any:
        return {"multi_user": False}

    def pipeline_service_list_pipelines(self, asked: Asked) -> Any:
        space = asked.query.get("namespace", "")
        own = [one for one in self._kfp.pipelines.values() if one.get("namespace", "") == space]
        return {"pipelines": _filtered(own, asked.query)}

    def upload_pipeline(self, asked: Asked) -> Any:
        made = {"pipeline_id": f"pipeline-{len(self._kfp.pipelines)}", "display_name": asked.query["name"]}
        made |= {"name": asked.query["name"], "created_at": "2026-11-29T12:00:00Z"}
        made |= {"namespace": asked.query["namespace"]} if "namespace" in asked.query else {}
        same = [one for one in self._kfp.pipelines.values() if one["name"] == made["name"]]
        if made.get("namespace", "") in [one.get("namespace", "") for one in same]:
            raise _Refused(409, "a pipeline of this name is there already")
        self._kfp.pipelines[made["pipeline_id"]] = made
        self._version(made["pipeline_id"], asked.query["name"], asked)
        return made

    def upload_pipeline_version(self, asked: Asked) -> Any:
        return self._version(asked.query["pipelineid"], asked.query["name"], asked)

    def _version(self, pipeline: str, name: str, asked: Asked) -> Any:
        made = {"pipeline_id": pipeline, "pipeline_version_id": f"version-{len(self._kfp.versions)}"}
        made |= {"name": name, "display_name": name, "created_at": "2026-11-29T12:00:00Z"}
        self._kfp.versions[made["pipeline_version_id"]] = made
        self._kfp.documents[made["pipeline_version_id"]] = _uploaded(asked)
        return made

    def pipeline_service_list_pipeline_versions(self, asked: Asked) -> Any:
        own = [one for one in self._kfp.versions.values() if one["pipeline_id"] == asked.path["pipeline_id"]]
        return {"pipeline_versions": _filtered(own, asked.query)}

    def experiment_service_list_experiments(self, asked: Asked) -> Any:
        return {"experiments": _filtered(list(self._kfp.experiments.values()), asked.query)}

    def experiment_service_create_experiment(self, asked: Asked) -> Any:
        made = {**asked.body, "experiment_id": f"experiment-{len(self._kfp.experiments)}"}
        self._kfp.experiments[made["experiment_id"]] = made
        return made

    def run_service_create_run(self, asked: Asked) -> Any:
        made = {**asked.body, "run_id": f"run-{len(self._kfp.runs)}", "state": "PENDING"}
        self._kfp.runs[made["run_id"]] = made
        return made

    def run_service_get_run(self, asked: Asked) -> Any:
        if asked.path["run_id"] not in self._kfp.runs:
            raise _Refused(404, "Run not found")
        script = self._kfp.script
        shown = script.pop(0) if len(script) > 1 else script[0]
        self._kfp.looked()
        return {**self._kfp.runs[asked.path["run_id"]], **shown}

    def recurring_run_service_list_recurring_runs(self, asked: Asked) -> Any:
        own = list(self._kfp.recurring.values())
        start = int(asked.query.get("page_token") or 0)
        page = own[start : start + self._kfp.page_size]
        more = {"next_page_token": str(start + len(page))} if start + len(page) < len(own) else {}
        return {"recurringRuns": page, "total_size": len(own), **more}

    def recurring_run_service_create_recurring_run(self, asked: Asked) -> Any:
        number = sum(1 for one in self._kfp.asked if one.operation.endswith("create_recurring_run"))
        made = {**asked.body, "recurring_run_id": f"recurring-{number}"}
        made["status"] = "ENABLED" if made["mode"] == "ENABLE" else "DISABLED"
        self._kfp.recurring[made["recurring_run_id"]] = made
        return made

    def recurring_run_service_delete_recurring_run(self, asked: Asked) -> Any:
        del self._kfp.recurring[asked.path["recurring_run_id"]]
        return {}

    def recurring_run_service_enable_recurring_run(self, asked: Asked) -> Any:
        self._kfp.recurring[asked.path["recurring_run_id"]]["status"] = "ENABLED"
        return {}

    def recurring_run_service_disable_recurring_run(self, asked: Asked) -> Any:
        self._kfp.recurring[asked.path["recurring_run_id"]]["status"] = "DISABLED"
        return {}


def _uploaded(asked: Asked) -> str:
    """The file of an upload, which KFP's own messages must take: a pipeline, and what its pods are told."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    (part,) = email.message_from_bytes(head + asked.raw).get_payload()
    text = part.get_payload(decode=True).decode()
    spec, *platforms = yaml.safe_load_all(text)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    for platform in platforms:
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    return text


def _operation(method: str, path: str) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    for template, methods in DESCRIPTION["paths"].items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/:]+)", re.escape(template))
        found = re.fullmatch(pattern, path)
        if found and method.lower() in methods:
            operation = methods[method.lower()]
            return operation["operationId"], operation, {k: unquote(v) for k, v in found.groupdict().items()}
    return None


def _check_request(asked: Asked, operation: dict[str, Any]) -> list[str]:
    known = {one["name"]: one for one in operation.get("parameters", ())}
    found = [f"{asked.operation}: unknown query parameter {name}" for name in asked.query if name not in known]
    for name, parameter in known.items():
        if parameter["in"] == "body":
            found += violations(asked.body, parameter["schema"], asked.operation)
        elif parameter["in"] == "query" and name in asked.query and parameter["type"] == "integer":
            found += [] if asked.query[name].isdigit() else [f"{asked.operation}: {name} is no number"]
        elif parameter["in"] == "query" and parameter.get("required") and name not in asked.query:
            found.append(f"{asked.operation}: no {name}")
        elif parameter["in"] == "formData" and f'name="{name}"'.encode() not in asked.raw:
            found.append(f"{asked.operation}: no file {name}")
    return found


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("_", "")).lower()


def _handler(kfp: Kfp) -> type[BaseHTTPRequestHandler]:
    answers = _Answers(kfp)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def _take(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            try:
                status, document = 200, self._answer(raw)
            except _Refused as refused:
                status, document = refused.status, {"code": 2, "message": refused.message}
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answer(self, raw: bytes) -> Any:
            parts = urlsplit(self.path)
            found = _operation(self.command, parts.path)
            if found is None:
                kfp.wrong.append(f"{self.command} {parts.path}: not in the description")
                raise _Refused(400, kfp.wrong[-1])
            operation_id, operation, path = found
            name = _snake(operation_id)
            headers = {key.lower(): value for key, value in self.headers.items()}
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = json.loads(raw) if raw and "json" in headers.get("content-type", "") else None
            asked = Asked(name, path, query, headers, body, raw)
            kfp.asked.append(asked)
            if kfp.token and headers.get("authorization") != f"Bearer {kfp.token}":
                raise _Refused(401, "Failed to authenticate")
            if kfp.faults.get(name):
                raise _Refused(*kfp.faults[name].pop(0))
            if wrong := _check_request(asked, operation):
                kfp.wrong += wrong
                raise _Refused(400, "; ".join(wrong))
            answer = getattr(answers, name)(asked)
            kfp.wrong += violations(answer, operation["responses"]["200"].get("schema", {}), f"answer of {name}")
            return answer

        do_GET = do_POST = do_DELETE = _take  # noqa: N815

    return Handler


@pytest.fixture
def kfp() -> Iterator[Kfp]:
    """A KFP; whatever a test does with it, nothing it was sent or answered may be other than described."""
    state = Kfp()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    assert state.wrong == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe for a cluster; nothing of this machine's own KFP is found."""
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)
    import kfp as kfp_module

    monkeypatch.setattr(kfp_module.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "no-context.json"))
    recipe = {
        "run": {
            "base_model": f"meta-llama/Meta-Llama-3-8B@{'a' * 40}",
            "dataset": "/data/rows.jsonl",
            "registry": "gs://models/registry",
            "alias": "champion",
            "method": "qlora",
            "num_train_epochs": 1,
        },
        "train": {"per_device_train_batch_size": 1},
        "quantize": {"serving_target": "vllm-cuda-sm90"},
        "gate": {
            "policy": {
                "checks": [
                    {
                        "task": "tool_call",
                        "metric": "exact",
                        "candidate": "quantized",
                        "reference": "merged",
                        "margin": 0.1,
                    }
                ]
            }
        },
        "approve": {"required": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return tmp_path


@pytest.fixture
def cluster(kfp: Kfp, home: Path) -> Any:
    """Writes a cluster file for the server, with some of it changed."""

    def write(**changes: Any) -> Path:
        document = {
            "host": kfp.url,
            "accelerators": [
                {"gpu": "L4", "node_labels": {"cloud.google.com/gke-accelerator": "nvidia-l4"}},
                {"gpu": "A100 80GB", "node_labels": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}},
            ],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "secrets": [{"secret": "hub", "key": "token", "env": "HF_TOKEN", "steps": ["prepare", "train"]}],
            "volumes": [{"claim": "data", "mount_path": "/data"}],
        }
        path = home / "cluster.yaml"
        path.write_text(yaml.safe_dump({**document, **changes}), "utf-8")
        return path

    return write
