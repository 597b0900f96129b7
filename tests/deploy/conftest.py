"""Versions for a registry that say how they answer, made without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.registry.versions import Part, publish
from tunegate.serving.agreement import Sizes
from tunegate.serving.probes import PROBES_NAME, Probe, Probes, ProbeToken, write_probes
from tunegate.storage.interface import Storage

#: What every stand-in for vLLM answers to everything.
ANSWERED = ProbeToken(1, -1.0, 5.0)

#: Publishes a version; returns its digest and that of the model in it.
Publish = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def _no_tool_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking them up takes most of the time of these small artifacts."""
    monkeypatch.setattr("tunegate.contracts.manifest.tool_versions", dict)
    monkeypatch.setattr("tunegate.contracts.manifest.code_commit", str)


@pytest.fixture
def publish_version(tmp_path: Path) -> Publish:
    """A version whose model is ``text``, was checked on an engine with these flags, and answers ``answer``."""

    def make(
        storage: Storage, text: str, engine: dict[str, Any], *, answer: ProbeToken = ANSWERED, decision: Any = "PASS"
    ) -> tuple[str, str]:
        place = tmp_path / "parts" / text

        def model(folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(text.encode())

        quantized = produce(place / "quantized", kind="quantized", parents={}, settings={}, build=model)
        row = Probe("row", (), "text", (0,), (0,), (answer,), 1)

        def report(folder: Path) -> None:
            (folder / "serving.json").write_bytes(pretty_json({"engine": engine}))
            probes = Probes(quantized.content_digest, 0.1, Sizes(tokens=1, mean=0.01, max=0.02), (2,), (row,))
            write_probes(probes, folder / PROBES_NAME)

        serving = produce(place / "serving", kind="serving", parents={}, settings={}, build=report)
        subjects = {"quantized": quantized.content_digest, "serving": serving.content_digest, "dataset": "d" * 64}
        verdict = Verdict(decision, "All.", (Check("gain", decision, "shown"),), subjects, "p" * 64)

        def judge(folder: Path) -> None:
            verdict.write(folder)
            (folder / "policy.json").write_bytes(pretty_json({"serving": {}}))

        produce(place / "verdict", kind="verdict", parents=subjects, settings={}, build=judge)
        parts = {role: Part(place / role, verify(place / role)) for role in ("quantized", "serving", "verdict")}
        return publish(storage, parts), quantized.content_digest

    return make
