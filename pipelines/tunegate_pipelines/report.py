"""What came of a local run: read from its artifacts, and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunegate.contracts.champion import CHAMPION_ROLES
from tunegate.contracts.errors import TunegateError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import MANIFEST_NAME, Manifest, read_manifest
from tunegate.contracts.verdict import Verdict, read_verdict
from tunegate.preflight.lint import Linted

SCHEMA_VERSION = 1
INDEX_NAME = "index.html"
#: What the lint said of the run, before it started.
LINT_NAME = "lint.json"
#: Where kfp.local puts what the steps write.
KFP_FOLDER = "kfp"

#: The order in which steps are shown.
_ORDER = (
    "dataset",
    "adapter",
    "merged",
    "quantized",
    "parity",
    "evaluation",
    "champion",
    "serving",
    "verdict",
    "request",
    "decision",
    "promotion",
)
_ROLES = ("base", "merged", "quantized", *CHAMPION_ROLES)
#: How the demo's measures are called in the table; any other is shown as ``task metric``.
_LABELS: Mapping[tuple[str, str], str] = {
    ("tool_call", "valid"): "valid calls",
    ("tool_call", "exact"): "exact calls",
    ("completion_perplexity", "perplexity"): "perplexity",
}
_TONES = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


@dataclass(frozen=True)
class Made:
    """One artifact of a run: its name among its kind, where it lies, and its manifest."""

    name: str
    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        artifacts: in the order of the steps.
        results: role → the evaluation's ``results.json``.
        verdict: the gate's, when the run got that far.
        promotion: ``promotion.json``, when something was promoted.
        linted: what the lint said, when the run got that far.
    """

    artifacts: tuple[Made, ...]
    results: Mapping[str, Mapping[str, Any]]
    verdict: Verdict | None
    promotion: Mapping[str, Any] | None
    linted: Linted | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as one document, for scripts."""
        return {
            "schema_version": SCHEMA_VERSION,
            "decision": self.verdict.decision if self.verdict else None,
            "summary": self.verdict.summary if self.verdict else None,
            "results": {
                role: {"tasks": found["tasks"], "model_bytes": found["model_bytes"]}
                for role, found in self.results.items()
            },
            "promotion": self.promotion,
            "lint": self.linted.to_json() if self.linted else None,
            "artifacts": {
                made.name: {"folder": str(made.folder), "content_digest": made.manifest.content_digest}
                for made in self.artifacts
            },
        }


@contextmanager
def finally_reported(report: Callable[[], None], console: Console) -> Iterator[None]:
    """Calls ``report`` however the body ends; where both fail, the body's error is the one that is raised."""
    try:
        yield
    except BaseException:
        try:
            report()
        except (TunegateError, OSError, ValueError, LookupError, TypeError) as error:
            console.print(Text(f"the report cannot be made: {type(error).__name__}: {error}", "yellow"), soft_wrap=True)
        raise
    report()


def read_report(output: Path) -> Report:
    """Reads every finished artifact of the run in ``output``."""
    paths = sorted((output / KFP_FOLDER).rglob(MANIFEST_NAME))
    folders = {path.parent for path in paths}
    outer = [path.parent for path in paths if not folders & set(path.parent.parents)]  # a champion holds evaluations
    found = [(folder, read_manifest(folder)) for folder in outer]
    digests = {manifest.content_digest: manifest.kind for _, manifest in found}
    artifacts = []
    results: dict[str, Mapping[str, Any]] = {}
    for folder, manifest in found:
        name = manifest.kind
        if manifest.kind == "evaluation":
            document = json.loads((folder / "results.json").read_text("utf-8"))
            role = digests.get(document["model_digest"], "base")
            name, results[role] = f"evaluation of {role}", document
        elif manifest.kind == "champion":
            results |= {
                role: read_json_object(folder / role / "results.json")
                for role in CHAMPION_ROLES
                if (folder / role).is_dir()
            }
        artifacts.append(Made(name, folder, manifest))
    artifacts.sort(key=lambda made: (_ORDER.index(made.manifest.kind), _role_rank(made.name)))
    of_kind = {made.manifest.kind: made.folder for made in artifacts}
    promotion = of_kind.get("promotion")
    return Report(
        artifacts=tuple(artifacts),
        results={role: results[role] for role in _ROLES if role in results},
        verdict=read_verdict(of_kind["verdict"]) if "verdict" in of_kind else None,
        promotion=json.loads((promotion / "promotion.json").read_text("utf-8")) if promotion else None,
        linted=_read_lint(output / LINT_NAME),
    )


def write_lint(linted: Linted, output: Path) -> None:
    """Keeps what the lint said for the report."""
    (output / LINT_NAME).write_bytes(pretty_json(linted.to_json()))


def _read_lint(path: Path) -> Linted | None:
    return Linted.from_json(read_json_object(path)) if path.is_file() else None


def _role_rank(name: str) -> int:
    return next((rank for rank, role in enumerate(_ROLES) if name.endswith(role)), len(_ROLES))


def comparison(report: Report) -> tuple[list[str], list[list[str]]]:
    """The table of the run: a row for each model; columns for its measures and size."""
    measures = [
        (task, metric)
        for task, found in next(iter(report.results.values()), {"tasks": {}})["tasks"].items()
        for metric in found["metrics"]
    ]
    labelled = [measure for measure in _LABELS if measure in measures]
    shown = labelled + [
        measure for measure in measures if measure not in _LABELS and measure[0] not in {t for t, _ in labelled}
    ]
    columns = ["model", *(_LABELS.get(measure, " ".join(measure)) for measure in shown), "size"]
    rows = []
    for role, found in report.results.items():
        values = [found["tasks"].get(task, {}).get("metrics", {}).get(metric) for task, metric in shown]
        rows.append([role, *(_figure(*pair) for pair in zip(shown, values, strict=True)), _size(found["model_bytes"])])
    return columns, rows


def _figure(measure: tuple[str, str], value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if measure[0] == "tool_call" else f"{value:.4g}"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def show(report: Report, output: Path, console: Console) -> None:
    """Prints the table, the verdict with its reasons, and where things lie; nothing for a run that made nothing."""
    if not report.artifacts:
        return
    if report.results:
        columns, rows = comparison(report)
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            drawn.add_column(column, justify="left" if column == "model" else "right")
        for row in rows:
            drawn.add_row(*row)
        console.print()
        console.print(drawn)
    if report.verdict:
        console.print()
        tone = _TONES[report.verdict.decision]
        console.print(Text.assemble((report.verdict.decision, f"bold {tone}"), f"  {report.verdict.summary}"))
        for check in report.verdict.checks:
            console.print(Text(f"  {check.decision:<12} {check.rule}: {check.reason}"), soft_wrap=True)
    console.print()
    if report.promotion:
        promotion = report.promotion
        console.print(Text(f"promoted  {promotion['alias']} → {promotion['version'][:12]}"))
        console.print(Text(f"lies in   {promotion['registry']}/versions/{promotion['version']}"), soft_wrap=True)
        console.print(Text(f"replaced  {(promotion['previous'] or 'nothing')[:12]}"))
    console.print(Text(f"page      {output / INDEX_NAME}"), soft_wrap=True)
