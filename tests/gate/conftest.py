"""A finished run as the gate sees it, written by hand: artifacts whose contents and scores a test chooses."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.files import sha256_json
from tunegate.contracts.manifest import Manifest, read_manifest
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.gate.settings import GateSettings
from tunegate.gate.step import run

POLICY: dict[str, Any] = {
    "confidence": 0.95,
    "checks": [
        {"task": "tool_call", "metric": "exact", "candidate": "merged", "reference": "base", "required_gain": 0.25},
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.10},
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "floor": 0.3},
    ],
}
#: What is carried from the base to the quantized model: file → its text.
CARRIED = {"tokenizer.json": "a tokenizer", "generation_config.json": "an end"}
BASE_DIGEST = "b" * 64
ENGINE = {"name": "lm-evaluation-harness", "torch": "2.13.0", "dtype": "float32", "device": "cpu", "batch_size": 8}


@dataclass
class Run:
    """What a test may bend before the gate judges it.

    Attributes:
        scores: role → scores of rows 0, 1, 2, … under tool_call.exact.
        results: role → what replaces entries of ``results.json``; None removes one.
        rows: role → what changes the rows of ``rows.parquet``.
        without: files that are not written, as ``role/name``.
        parents: kind → parents in place of the right ones.
        companions: file → what replaces its text in the quantized model.
        parity: what of a good parity report is replaced: ``pairs`` (pair → figures), ``report`` and ``manifest`` (name
            → digest), ``top`` (entries of the document), ``without`` (what is not merged with it); None writes none.
        serving: the same of a good serving report: ``report``, ``manifest``, ``top``; None writes none.
        champion: what of a good champion artifact is replaced: ``scores`` (role → scores; none: there is no champion),
            ``top`` (entries of the document); None writes none.
    """

    folder: Path
    scores: dict[str, list[float]]
    policy: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(POLICY))
    profile: Any = field(default_factory=lambda: {"overlap": {"exact": 0, "near": 0}})
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    parents: dict[str, dict[str, str]] = field(default_factory=dict)
    companions: dict[str, str] = field(default_factory=dict)
    roles: tuple[str, ...] = ("base", "merged", "quantized")
    parity: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    champion: dict[str, Any] | None = None
    inputs: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Writes every artifact."""
        ids = row_ids(len(self.scores["base"]))
        questions = "".join(
            json.dumps({"id": row, "prompt": [{"role": "user", "content": f"question <{row}>"}],
                        "completion": [{"role": "assistant", "content": "expected"}]}) + "\n"
            for row in ids
        )  # fmt: skip
        profile = json.dumps(self.profile)
        dataset = self._artifact(
            "dataset", {}, {"evaluation.jsonl": questions, "validation.jsonl": "{}", "profile.json": profile}
        )
        stated = json.dumps({"companions": {name: sha256(text.encode()).hexdigest() for name, text in CARRIED.items()}})
        adapter = self._artifact(
            "adapter",
            {"dataset": dataset.content_digest},
            {"weights": "adapter", "training.json": stated, "tokenizer.json": CARRIED["tokenizer.json"]},
        )
        merged = self._artifact(
            "merged",
            {"base_model": BASE_DIGEST, "adapter": adapter.content_digest},
            {"weights": "merged", **CARRIED},
        )
        quantized = self._artifact(
            "quantized",
            {"model": merged.content_digest, "dataset": dataset.content_digest},
            {"weights": "quantized", **CARRIED, **self.companions},
        )
        digests = {"base": BASE_DIGEST, "merged": merged.content_digest, "quantized": quantized.content_digest}
        self.inputs = {name: self.folder / name for name in ("dataset", "adapter", "merged", "quantized")}
        self.inputs["evaluations"] = {
            role: self._evaluation(role, ids, digests[role], _rows_digest(dataset)) for role in self.roles
        }
        if self.champion is not None:
            self.inputs["champion"] = self._champion(ids, _rows_digest(dataset), self.champion)
        if self.parity is not None:
            rows = next(entry.sha256 for entry in dataset.files if entry.path == "validation.jsonl")
            about = {"base": BASE_DIGEST, "adapter": adapter.content_digest, "validation_rows": rows}
            self.inputs["parity"] = self._parity({**digests, **about}, self.parity)
        if self.serving is not None:
            self.inputs["serving"] = self._serving(dataset, quantized, self.serving)

    def judge(self) -> Verdict:
        """Writes everything and runs the gate."""
        self.write()
        return self.judge_written()

    def judge_written(self) -> Verdict:
        """Runs the gate on what was written before."""
        run(GateSettings(self.policy), **self.inputs, output=self.folder / "verdict")
        return read_verdict(self.folder / "verdict")

    def _artifact(self, kind: str, parents: Mapping[str, str], files: Mapping[str, str] | None = None) -> Manifest:
        def build(folder: Path) -> None:
            for name, text in (files or {"weights": kind}).items():
                if f"{kind}/{name}" not in self.without:
                    (folder / name).write_text(text)

        parents = self.parents.get(kind, parents)
        return produce(self.folder / kind, kind=kind, parents=parents, settings={}, build=build)

    def _champion(self, ids: list[str], evaluation_rows: str, change: Mapping[str, Any]) -> Path:
        """What the alias pointed at, with its evaluations."""
        scores = change.get("scores", {})
        models = {role: f"{place}" * 64 for place, role in enumerate(scores, 1)}
        there = {"record": "r" * 64, "generation": 3, "version": "v" * 64}
        document = {
            "schema_version": 1, "alias": "champion", "registry": "registry", "record": None, "generation": 0,
            "version": None, "models": models, "evaluations": dict.fromkeys(scores, "stored"),
            "asked": ["champion", "champion_quantized"],
        } | (there if scores else {}) | change.get("top", {})  # fmt: skip
        self.scores |= scores
        places = {role: self._evaluation(role, ids, models[role], evaluation_rows) for role in scores}

        def build(folder: Path) -> None:
            (folder / "champion.json").write_text(json.dumps(document))
            for role, place in places.items():
                shutil.copytree(place, folder / role)

        produce(self.folder / "champion", kind="champion", parents={}, settings={}, build=build)
        return self.folder / "champion"

    def _parity(self, about: Mapping[str, str], change: Mapping[str, Any]) -> Path:
        """A good report of these digests, changed."""

        def digests(where: str) -> dict[str, str]:
            return {name: d for name, d in {**about, **change.get(where, {})}.items() if d is not None}

        worst = [{"row_id": "row 7"}, {"row_id": "row 9"}, {"row_id": "row 7"}]
        good = {"top1_agreement": 1.0, "max_token_kl": 0.5, "worst_layer": "model.layers.1", "worst_tokens": worst}
        pairs: Any = {
            "merged against adapter": {**good, "mean_kl": 1e-6},
            "quantized against merged": {**good, "mean_kl": 0.01},
        }
        if "pairs" in change.get("without", ()):
            pairs = change["pairs"]
        else:
            pairs = {name: {**figures, **change.get("pairs", {}).get(name, {})} for name, figures in pairs.items()}
        document = {
            "schema_version": 1, "digests": digests("report"), "rows": 4, "tokens": 100,
            "noise_floor": {"mean_kl": 1e-9}, "pairs": pairs,
        } | change.get("top", {})  # fmt: skip
        self.parents["parity"] = digests("manifest")
        self._artifact("parity", {}, {"parity.json": json.dumps(document), "page.html": "parity"})
        return self.folder / "parity"

    def _serving(self, dataset: Manifest, quantized: Manifest, change: Mapping[str, Any]) -> Path:
        """A good report on these, changed."""
        evaluation = self.inputs["evaluations"].get("quantized")
        about = {
            "model": quantized.content_digest,
            "validation_rows": next(entry.sha256 for entry in dataset.files if entry.path == "validation.jsonl"),
            "evaluation": read_manifest(evaluation).content_digest if evaluation else None,
        }
        document = {
            "schema_version": 1, "checked": True, "digests": {**about, **change.get("report", {})},
            "served_name": quantized.content_digest, "rows": 20, "tokens": 400, "certain_tokens": 390,
            "agreement": 1.0, "rendered": 1.0, "ended": 1.0, "same_answers": None, "scores": {},
            "logprobs": {"mean": 0.002, "max": 0.2}, "noise": {"mean": 0.001, "max": 0.2},
            "apart": [{"row_id": "row 3", "outcome": "differs", "rendered": True, "ended": False}],
        } | change.get("top", {})  # fmt: skip
        self.parents["serving"] = {
            name: digest for name, digest in {**about, **change.get("manifest", {})}.items() if digest is not None
        }
        self._artifact("serving", {}, {"serving.json": json.dumps(document), "page.html": "serving"})
        return self.folder / "serving"

    def _evaluation(self, role: str, ids: list[str], model: str, evaluation_rows: str) -> Path:
        scores = self.scores[role]
        rows = [
            {"row_id": row, "task": "tool_call", "metric": "exact", "score": float(score), "prompt_digest": f"p{row}",
             "answer": f"{role} says {score:g} <b>", "tags": []}
            for row, score in zip(ids, scores, strict=True)
        ]  # fmt: skip
        rows = self.rows.get(role, lambda same: same)(rows)
        results = {
            "schema_version": 1, "model_digest": model, "evaluation_rows_digest": evaluation_rows,
            "rows_digest": sha256_json(ids),
            "tasks": {"tool_call": {"metrics": {}, "rows": len(ids)}},
            "overlap": {},
            "settings": {"max_new_tokens": 72, "batch_size": 8},
            "engine": dict(ENGINE),
        } | self.results.get(role, {})  # fmt: skip

        def build(folder: Path) -> None:
            if f"{role}/results.json" not in self.without:
                (folder / "results.json").write_text(json.dumps({k: v for k, v in results.items() if v is not None}))
            if f"{role}/rows.parquet" not in self.without:
                write_parquet(rows, folder / "rows.parquet")
            (folder / "page.html").write_text(role)

        output = self.folder / f"evaluation-{role}"
        produce(output, kind="evaluation", parents={}, settings={"role": role}, build=build)
        return output


def _rows_digest(dataset: Manifest) -> str:
    """As the evaluations of a run without evaluation rows would say it: a digest that is not there."""
    return next((entry.sha256 for entry in dataset.files if entry.path == "evaluation.jsonl"), "")


def row_ids(count: int) -> list[str]:
    """Ids of the shape that prepare gives."""
    return [f"{number:016x}" for number in range(count)]


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    kinds = {"row_id": text, "task": text, "metric": text, "score": pa.float64(), "prompt_digest": text, "answer": text,
             "tags": pa.list_(text), "conversation": text}  # fmt: skip
    names = set().union(*(row.keys() for row in rows)) if rows else set(kinds)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(n, k) for n, k in kinds.items() if n in names])), path)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that passes: of 100 rows base has 0 right, merged 50, quantized 49 of the same and one other."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a hundred runs, none of which must survive a power cut
    monkeypatch.setattr("tunegate.contracts.manifest.tool_versions", dict)
    merged = [1.0] * 50 + [0.0] * 50
    return Run(tmp_path, {"base": [0.0] * 100, "merged": merged, "quantized": [0.0, *merged[1:50], 1.0, *merged[51:]]})
