"""``tunegate run`` with approval on the tiny model, answered from elsewhere; every other ending on its artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.approve import request as asking
from tunegate.approve.settings import ApproveSettings
from tunegate.cli import app
from tunegate.contracts.approval import Identity
from tunegate.contracts.errors import SettingsError
from tunegate.contracts.manifest import verify
from tunegate.registry.aliases import current, history, promote, read_alias
from tunegate.registry.approvals import list_requests, read_request
from tunegate.registry.settings import SigningSettings
from tunegate.registry.signatures import fetch_signed_version
from tunegate.registry.versions import Part, publish
from tunegate.storage.open import open_storage

PASSES = [{"task": "tool_call", "metric": "valid", "candidate": "quantized", "reference": "merged", "margin": 0.6}]
WAIT_SECONDS = 240


@dataclass
class Run:
    """A finished run with approval, and what it was told."""

    folder: Path
    registry: str
    request: str
    said: str
    signing: SigningSettings

    @property
    def verified(self) -> list[str]:
        """What promotion is told of the version, which the run signed."""
        return ["--public-key", self.signing.public_key]

    def inputs(self) -> dict[str, Any]:
        """What the gate judged, as the run left it."""
        report = json.loads((self.folder / "report.json").read_text("utf-8"))
        found = {name: Path(made["folder"]) for name, made in report["artifacts"].items()}
        roles = ("base", "merged", "quantized")
        models, reports = ("adapter", "merged", "quantized"), ("verdict", "parity", "champion", "serving")
        named = {name: found[name] for name in (*models, *reports)}
        return {**named, "evaluations": {role: found[f"evaluation of {role}"] for role in roles}}

    def ask(self, output: Path, alias: str, requester: Identity | None = None, **settings: Any) -> str:
        """Asks for another alias, with the same artifacts."""
        who = requester or Identity("local:ann", "local")
        told = asking.Asking(alias, who, ApproveSettings(**settings), SigningSettings(), {})
        asking.run(told, **self.inputs(), registry=self.registry, output=output)
        return str(json.loads((output / "request.json").read_text())["request"])


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, rows_file: Path, key_pair: Any) -> Run:
    """A run that waits for approval, and somebody who gives it from another terminal."""
    place = tmp_path_factory.mktemp("approval")
    signing, registry = key_pair(place), str(place / "registry")
    recipe = {
        "run": {"base_model": str(tiny_base), "dataset": str(rows_file), "registry": registry, "alias": "tiny",
                "method": "lora", "r": 4, "scheme": "FP8_DYNAMIC", "max_length": 256},
        "prepare": {"num_calibration_samples": 4},
        "train": {"gradient_checkpointing": False, "evaluations_per_run": 1},
        "quantize": {"num_calibration_samples": 4},
        "evaluate": {"max_new_tokens": 4},
        "parity": {"rows": 2},
        "gate": {"policy": {"checks": PASSES}},
        "approve": {"required": True, "allow_requester": True, "poll_seconds": 0.1, "expires_seconds": 600},
        "signing": {"method": "key", "private_key": signing.private_key, "public_key": signing.public_key,
                    "require_signature": True},
    }  # fmt: skip
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    command = [sys.executable, "-m", "tunegate", "run", str(path), "--output", str(place / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            request = next(_asked(registry, process))
            storage = open_storage(registry)
            assert read_alias(storage, "tiny").record is None
            answered = CliRunner().invoke(
                app, ["approve", request[:12], "--registry", registry, "--reason", "looks right"]
            )
            assert answered.exit_code == 0, answered.output
            said, _ = process.communicate(timeout=WAIT_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, said
    return Run(place / "run", registry, request, said, signing)


def _asked(registry: str, process: subprocess.Popen[str]) -> Iterator[str]:
    """The request, as soon as the run has made it."""
    for _ in range(WAIT_SECONDS * 4):
        if Path(registry).is_dir() and (found := list_requests(open_storage(registry))):
            yield found[0]
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.25)


def test_approved_run_ends_promoted_with_verdict_approval_and_a_signature_that_verifies(
    approved: Run, tmp_path: Path
) -> None:
    storage = open_storage(approved.registry)
    record = current(storage, "tiny")
    assert record is not None
    assert (record.approval, record.note) == (approved.request, "looks right")
    manifest = fetch_signed_version(storage, record.version, tmp_path / "version", approved.signing)
    assert record.verdict == manifest.parents["verdict"]
    lineage = json.loads((tmp_path / "version/lineage/statement.json").read_text())
    materials = {m["name"] for m in lineage["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {"base", "dataset"} <= materials


def test_whoever_waits_is_told_how_to_answer(approved: Run) -> None:
    assert f"tunegate approve {approved.request[:12]} --registry {approved.registry}" in approved.said
    assert "approve by local:" in approved.said
    for page in ("request", "decision", "promotion"):
        assert (approved.folder / "pages" / f"{page}.html").is_file()


def test_the_approval_cannot_be_replayed(approved: Run, tmp_path: Path, tiny_dataset: Path) -> None:
    storage = open_storage(approved.registry)
    digest = approved.ask(tmp_path / "asked", "replayed", allow_requester=True)
    answer = ["--registry", approved.registry]
    use = ["promote", digest, *answer, *approved.verified]
    for command in (["approve", digest, *answer, "--reason", "once"], use):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    other = publish(storage, {"data": Part(tiny_dataset, verify(tiny_dataset))})
    promote(storage, read_alias(storage, "replayed"), other, verdict="v", attempt="somebody else's")
    before = history(storage, "replayed")
    replayed = CliRunner().invoke(app, use)
    assert (replayed.exit_code, "approval was already used" in replayed.stderr) == (1, True), replayed.output
    assert history(storage, "replayed") == before
    assert [record.version for record in before] == [other, read_request(storage, digest).version]


def test_a_run_that_nobody_approved_ends_red_with_who_said_no(approved: Run, tmp_path: Path) -> None:
    """The tasks of the branch 'denied', as KFP runs them; that the branch leads there is in the compiled pipeline."""
    expired = approved.ask(tmp_path / "asked", "denied", expires_seconds=1)
    program = (
        "import sys; from kfp import dsl, local; from tunegate.approve.component import await_approval, not_approved\n"
        "@dsl.pipeline\n"
        "def denied(registry: str, request: str):\n"
        "    waited = await_approval(settings={'poll_seconds': 0.1}, registry=registry, request=request)\n"
        "    with dsl.If(waited.outputs['decision'] == 'approve'):\n"
        "        await_approval(settings={}, registry='/never', request='run')\n"
        "    with dsl.Else():\n"
        "        not_approved(answer=waited.outputs['answer'])\n"
        "local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)\n"
        "denied(registry=sys.argv[2], request=sys.argv[3])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "kfp"), approved.registry, expired]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "'not-approved'" in said
    assert "/never" not in said
    assert "expired: nobody answered in time" in said
    assert current(open_storage(approved.registry), "denied") is None


def kfp_run(place: Path, pipeline: str, **arguments: Any) -> None:
    """Runs a pipeline of its own as KFP would, through kfp.local in a process that can be judged by its exit."""
    program = (
        "import json, sys; from kfp import local; from importlib import import_module\n"
        "local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)\n"
        "getattr(import_module('tunegate_pipelines.' + sys.argv[2]), sys.argv[2])(**json.loads(sys.argv[3]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(place / pipeline), pipeline, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def test_the_pipelines_approve_and_promote_need_no_run_that_waits(approved: Run, tmp_path: Path) -> None:
    digest = approved.ask(tmp_path / "asked", "by-pipeline")
    place = {"request": digest, "registry": approved.registry}
    with pytest.raises(RuntimeError, match="The decision is not understood"):
        kfp_run(tmp_path, "approve", decision="yes", reason="looks right", **place)
    with pytest.raises(RuntimeError, match="Nobody has approved"):
        kfp_run(tmp_path, "promote", **place)
    kfp_run(tmp_path, "approve", decision="approve", reason="looks right", **place)
    with pytest.raises(RuntimeError, match="nothing to verify it with"):
        kfp_run(tmp_path, "promote", **place)
    signing = {"method": "key", "public_key": approved.signing.public_key}
    kfp_run(tmp_path, "promote", signing=signing, **place)
    record = current(open_storage(approved.registry), "by-pipeline")
    assert record is not None
    assert (record.approval, record.version) == (digest, read_request(open_storage(approved.registry), digest).version)


def test_rejected_and_expired_requests_move_nothing_and_exit_3(approved: Run, tmp_path: Path) -> None:
    answer = ["--registry", approved.registry]
    rejected = approved.ask(tmp_path / "rejected", "rejected")
    assert CliRunner().invoke(app, ["reject", rejected, *answer, "--reason", "too slow"]).exit_code == 0
    expired = approved.ask(tmp_path / "expired", "expired", expires_seconds=1)
    time.sleep(2)
    late = CliRunner().invoke(app, ["approve", expired, *answer, "--reason", "sorry"])
    assert (late.exit_code, "has expired" in late.stderr) == (3, True), late.output
    for digest, alias in ((rejected, "rejected"), (expired, "expired")):
        assert CliRunner().invoke(app, ["promote", digest, *answer]).exit_code == 3
        assert current(open_storage(approved.registry), alias) is None


def test_what_changed_since_it_was_asked_is_named(approved: Run, tmp_path: Path) -> None:
    answer = ["--registry", approved.registry]
    first = approved.ask(tmp_path / "one", "busy")
    second = approved.ask(tmp_path / "two", "busy", allow_requester=True)
    for digest in (first, second):
        assert CliRunner().invoke(app, ["approve", digest, *answer, "--reason", "ok"]).exit_code == 0
    unseen = CliRunner().invoke(app, ["promote", first, *answer])
    assert (unseen.exit_code, "--public-key" in unseen.stderr) == (2, True), unseen.output
    assert CliRunner().invoke(app, ["promote", first, *answer, *approved.verified]).exit_code == 0
    refused = CliRunner().invoke(app, ["promote", second, *answer, *approved.verified])
    assert refused.exit_code == 3
    assert "alias busy: promote to" in refused.stderr
    assert len(history(open_storage(approved.registry), "busy")) == 1


def test_nobody_known_asks_and_nobody_unknown_answers(
    approved: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="Nobody knows who asks"):
        approved.ask(tmp_path / "unknown", "unknown", Identity("unauthenticated", "none"))
    digest = approved.ask(tmp_path / "known", "unknown")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # in a pod the user of the container is nobody
    refused = CliRunner().invoke(app, ["approve", digest, "--registry", approved.registry, "--reason", "ok"])
    assert refused.exit_code == 3
    assert "no verified identity" in refused.stderr
