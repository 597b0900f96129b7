"""A canary on KServe whose containers are real vLLM: it proves its digest, answers its probes and takes its place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from tests.deploy.kserve.cluster import TOKEN, FakeCluster

from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.deploy.kserve.cluster import Cluster
from tunegate.deploy.settings import ClusterSettings
from tunegate.deploy.step import run as deploy
from tunegate.registry.aliases import promote, read_alias
from tunegate.registry.settings import SigningSettings
from tunegate.registry.versions import Part, publish
from tunegate.serving.client import Client
from tunegate.serving.environment import PYTHON_VARIABLE
from tunegate.serving.flags import ServingFlags
from tunegate.storage.open import open_storage

pytestmark = pytest.mark.slow  # four starts of vLLM, one behind the other

SERVING = {"kv_cache_memory_bytes": 64 << 20}
LONG_SECONDS = 3600.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def versions(place: Path, make_base: Any, rows_file: Path) -> tuple[str, str, str]:
    """Two versions of a checked model, the second with one more part, and the digest that both are served under."""
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate
    from tunegate.prepare.settings import PrepareSettings
    from tunegate.prepare.step import run as prepare
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run as quantize
    from tunegate.serve_check.settings import ServeCheckSettings
    from tunegate.serve_check.step import run as serve_check

    base = make_base(hidden=128)  # heads of 32, the smallest that vLLM's attention on a CPU knows
    settings = PrepareSettings(max_length=256, validation_fraction=0.3)
    prepare(settings, dataset=str(rows_file), base_model=base, output=place / "dataset")
    model = place / "quantized"
    quantize(QuantizeSettings(scheme="FP8_DYNAMIC"), model=base, dataset=place / "dataset", output=model)
    tasks = EvaluateSettings(tasks=("tool_call",), limit=4, max_new_tokens=16)
    evaluate(tasks, model=model, dataset=place / "dataset", output=place / "evaluation")
    serve_check(
        ServeCheckSettings(enabled=True, rows=8, max_new_tokens=16, ready_seconds=LONG_SECONDS),
        ServingFlags(**SERVING),
        model=model,
        dataset=place / "dataset",
        evaluation=place / "evaluation",
        output=place / "serving",
    )
    storage = open_storage(str(place / "registry"))
    published = []
    for more in ((), ("evaluations/quantized",)):
        folders = {"quantized": model, "serving": place / "serving"} | dict.fromkeys(more, place / "evaluation")
        parts = {role: Part(folder, verify(folder)) for role, folder in folders.items()}
        subjects = {role: part.manifest.content_digest for role, part in parts.items()} | {"dataset": "d" * 64}
        folder = place / f"verdict-{len(more)}"
        build = _judged(Verdict("PASS", "All.", (Check("gain", "PASS", "shown"),), subjects, "p" * 64))
        parts["verdict"] = Part(folder, produce(folder, kind="verdict", parents=subjects, settings={}, build=build))
        published.append(publish(storage, parts))
    return published[0], published[1], verify(model).content_digest


def _judged(verdict: Verdict) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        verdict.write(folder)
        (folder / "policy.json").write_bytes(pretty_json({"serving": {}}))

    return build


class Container:
    """A pod that runs the real entrypoint on the files that its storageUri names, and so the real vLLM."""

    def __init__(self, model: Path, args: list[str], serve_python: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "tunegate.serving.entrypoint", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *args]
        self._running = subprocess.Popen(command, env={**os.environ, PYTHON_VARIABLE: str(serve_python)})

    @property
    def ready(self) -> bool:
        return Client(f"http://127.0.0.1:{self.port}").healthy()

    def stop(self) -> None:
        self._running.terminate()
        self._running.wait()


def test_canary_on_real_vllm_proves_its_digest_answers_its_probes_and_takes_its_place(
    place: Path, versions: tuple[str, str, str], serve_python: Path
) -> None:
    first, second, model = versions
    storage = open_storage(str(place / "registry"))
    template = (Path(__file__).parents[2] / "manifests/base/serving/inferenceservice.yaml").read_text("utf-8")
    cluster = FakeCluster()
    cluster.put(
        "/api/v1/namespaces/prod/configmaps/tunegate-serving",
        {"metadata": {"name": "tunegate-serving"}, "data": {"inferenceservice.yaml": template}},
    )
    cluster.start_pod = lambda args: Container(place / "quantized", args, serve_python)
    client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=cluster.url))
    client.configuration.api_key = {"authorization": f"Bearer {TOKEN}"}
    settings = ClusterSettings(
        cpu=True, storage_prefix="gs://models/registry", weights=(50, 100), stage_seconds=5.0, min_requests=10,
        max_latency_ratio=100.0, poll_seconds=1.0, ready_seconds=LONG_SECONDS,
    )  # fmt: skip
    told = {}
    try:
        for version in (first, second):
            promote(storage, read_alias(storage, "clustered"), version, verdict="v", attempt=f"to {version}")
            output = place / f"deployment-{version[:12]}"
            deploy(
                settings, ServingFlags(**SERVING), SigningSettings(), registry=str(place / "registry"),
                alias="clustered", output=output, cluster=Cluster(client, "prod"),
            )  # fmt: skip
            told[version] = json.loads((output / "deployment.json").read_text())
        (pod,) = cluster.pods[f"clustered-v{second[:10]}-predictor"][1]
        served = Client(f"http://127.0.0.1:{pod.port}").models()
        assert [one.name for one in served] == [model, "clustered"]
        assert cluster.started[f"clustered-v{second[:10]}-predictor"] == 1
        assert (told[second]["replaced"], told[second]["probes"]) == (first, 8)
        for share in told[second]["shares"]:
            assert (share["failed"], share["user_failures"]) == (0, 0)
            assert share["asked"] <= share["user_requests"], "vLLM's own counter has every request of ours"
    finally:
        cluster.stop()
