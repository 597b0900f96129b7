"""The artifacts of a finished run that the gate let through, made without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.approve import request
from tunegate.approve.settings import ApproveSettings
from tunegate.contracts.approval import Identity
from tunegate.contracts.artifact import produce
from tunegate.contracts.claim import Claim
from tunegate.contracts.verdict import Check, Verdict
from tunegate.registry.settings import SigningSettings
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

ANN, BOB = Identity("local:ann", "local"), Identity("local:bob", "local")


@dataclass
class Finished:
    """A run whose verdict is PASS, and the registry that it would be promoted to."""

    folder: Path
    registry: str
    inputs: dict[str, Any]

    @property
    def storage(self) -> Storage:
        return open_storage(self.registry)

    def ask(
        self,
        output: str = "asked",
        *,
        requester: Identity = ANN,
        signing: SigningSettings = SigningSettings(),  # noqa: B008 - frozen
        environment: dict[str, str] | None = None,
        claim: Claim | None = None,
        **settings: Any,
    ) -> str:
        """Asks for approval; the request's digest."""
        asking = request.Asking("champion", requester, ApproveSettings(**settings), signing, environment or {}, claim)
        request.run(asking, **self.inputs, registry=self.registry, output=self.folder / output)
        document = json.loads((self.folder / output / "request.json").read_text())
        return str(document["request"])


@pytest.fixture(autouse=True)
def _no_tool_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking them up takes most of the time of these small artifacts."""
    monkeypatch.setattr("tunegate.contracts.manifest.tool_versions", dict)
    monkeypatch.setattr("tunegate.contracts.manifest.code_commit", str)


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., Finished]:
    """Makes a finished run; another text makes other models."""

    def make(text: str = "one", registry: str = "", **changes: Any) -> Finished:
        folder = tmp_path / text
        subjects = {"dataset": "d" * 64}

        def artifact(name: str, kind: str, files: dict[str, str]) -> Path:
            def build(partial: Path) -> None:
                for path, content in files.items():
                    (partial / path).write_text(content)

            made = produce(folder / name, kind=kind, parents={}, settings={"text": text}, build=build)
            subjects[name] = made.content_digest
            return folder / name

        inputs: dict[str, Any] = {kind: artifact(kind, kind, {"weights": text}) for kind in ("adapter", "merged")}
        inputs["quantized"] = artifact("quantized", "quantized", {"weights": text})
        inputs["parity"] = artifact("parity", "parity", {"parity.json": text})
        measured = {"tasks": {"tool_call": {"metrics": {"exact": 0.5}}}, "model_digest": text}
        inputs["evaluations"] = {
            role: artifact(f"evaluations/{role}", "evaluation", {"results.json": json.dumps(measured | {"role": role})})
            for role in ("base", "merged", "quantized")
        }
        said = {"decision": "PASS", "summary": "All 1 checks hold.", "policy_digest": "p" * 64} | changes
        verdict = Verdict(checks=(Check("gain", "PASS", "shown"),), subjects=subjects, **said)
        produce(folder / "verdict", kind="verdict", parents=subjects, settings={}, build=verdict.write)
        inputs["verdict"] = folder / "verdict"
        place = registry or str(tmp_path / "registry")
        if "://" not in place:
            Path(place).mkdir(exist_ok=True)
        return Finished(folder, place, inputs)

    return make


@pytest.fixture
def finished(finish: Callable[..., Finished]) -> Finished:
    return finish()
