"""evaluate: one model on the held-out rows, with lm-evaluation-harness; every row's score is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.files import pretty_json, sha256_json
from tunegate.contracts.manifest import Manifest, evaluation_rows_digest, input_digest, tool_versions, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.documents import (
    COMPLETION_PERPLEXITY,
    LOCAL_TASKS,
    Document,
    Row,
    check_completions,
    check_lengths,
    check_rows,
    documents,
    read_rows,
)
from tunegate.evaluate.harness import STEP, Measured, check_tasks, measure
from tunegate.evaluate.page import evaluation_page
from tunegate.evaluate.reuse import copy_files, keep_evaluation, kept_evaluation
from tunegate.evaluate.rows import ScoredRow, scored_rows, write_rows
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.models.files import check_model_folder, read_config

KIND = "evaluation"
SCHEMA_VERSION = 1

#: The distributions that decide how a model answers.
ENGINE = ("lm-eval", "torch", "transformers", "compressed-tensors")


def run(settings: EvaluateSettings, *, model: Path, dataset: Path, output: Path, reuse: Path | None = None) -> Manifest:
    """Evaluates ``model`` on the evaluation rows of ``dataset``.

    Args:
        settings: what to ask.
        model: a model folder: a base, a merged or a quantized model.
        dataset: what prepare made.
        output: where the evaluation goes.
        reuse: a folder of finished evaluations by work digest; the same work done before is copied from it, and new
            work is kept in it.

    Raises:
        DataError: when rows cannot be scored or do not fit into the model.
        ModelError, SettingsError, ArtifactError, OutputExistsError: before the model is loaded.
    """
    check_tasks(settings.tasks)
    check_model_folder(model)
    parents = {"model": input_digest(model), "evaluation_rows": evaluation_rows_digest(verify(dataset, kind="dataset"))}
    document = settings_document(settings)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    rows = read_rows(dataset, limit=settings.limit)
    if any(task in LOCAL_TASKS for task in settings.tasks):
        check_rows(rows, settings.tasks)
        if len(rows) < settings.limit:
            say(STEP, f"the data set has {len(rows)} evaluation rows, fewer than evaluate.limit asks for: all are used")
    engine = _engine(settings)
    kept = kept_evaluation(reuse, kind=KIND, parents=parents, settings=document, engine=engine)

    def build(folder: Path) -> None:
        if kept is not None:
            say(STEP, f"the same model was evaluated before on the same rows: copied from {kept}")
            copy_files(kept, folder)
            return
        _evaluate(settings, model, rows, parents, engine, folder)

    manifest = produce(output, kind=KIND, parents=parents, settings=document, build=build)
    keep_evaluation(reuse, output, manifest)
    return manifest


def _evaluate(
    settings: EvaluateSettings,
    model: Path,
    rows: Sequence[Row],
    parents: Mapping[str, str],
    engine: Mapping[str, Any],
    folder: Path,
) -> None:
    """Loads the model, asks every task and fills ``folder``."""
    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    with quiet("lm_eval", "transformers", "datasets"):
        say(STEP, f"loading {model}")
        tokenizer = load_tokenizer(model)
        docs = _documents(settings, model, tokenizer, rows)
        loaded = load_causal_lm(model, dtype=settings.dtype)
        measured = measure(settings, model=loaded, tokenizer=tokenizer, docs=docs)
    scored = scored_rows(measured)
    results = {
        "schema_version": SCHEMA_VERSION,
        "model_digest": parents["model"],
        "evaluation_rows_digest": parents["evaluation_rows"],
        "rows_digest": sha256_json(sorted(str(row["id"]) for row in rows)),
        "tasks": _tasks(measured),
        "overlap": {},
        "engine": dict(engine),
        "settings": settings_document(settings),
        "model_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
    }
    write_rows(scored, folder)
    (folder / "results.json").write_bytes(pretty_json(results))
    (folder / "summary.json").write_bytes(pretty_json(_summary(results)))
    (folder / "page.html").write_text(evaluation_page(results, scored, docs), "utf-8")
    _tell(results, scored)


def _documents(settings: EvaluateSettings, model: Path, tokenizer: Any, rows: Sequence[Row]) -> list[Document]:
    """Our rows, rendered and checked; none when only tasks of the harness are asked, which bring their own."""
    if not any(task in LOCAL_TASKS for task in settings.tasks):
        return []
    docs = documents(tokenizer, rows)
    if COMPLETION_PERPLEXITY in settings.tasks:
        check_completions(docs)
    context_tokens = int(read_config(model).get("max_position_embeddings", 1 << 30))
    check_lengths(docs, context_tokens=context_tokens, new_tokens=settings.max_new_tokens)
    return docs


def _engine(settings: EvaluateSettings) -> dict[str, Any]:
    """What the model is computed with, known before it is loaded."""
    from tunegate.models.load import compute_dtype, device_type

    versions = tool_versions()
    return {
        "name": "lm-evaluation-harness",
        **{name: versions[name] for name in ENGINE if name in versions},
        "dtype": str(compute_dtype(settings.dtype)).removeprefix("torch."),
        "device": device_type(),
        "batch_size": settings.batch_size,
    }


def _tasks(measured: Mapping[str, Measured]) -> dict[str, Any]:
    return {
        task: {"metrics": dict(sorted(found.aggregates.items())), "rows": len({s["doc_id"] for s in found.samples})}
        for task, found in measured.items()
    }


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The headline metrics, flat."""
    metrics = {
        f"{task}.{metric}": value
        for task, found in results["tasks"].items()
        for metric, value in found["metrics"].items()
    }
    rows = max(found["rows"] for found in results["tasks"].values())
    return {**metrics, "rows": rows, "model_bytes": results["model_bytes"]}


def _tell(results: Mapping[str, Any], rows: Sequence[ScoredRow]) -> None:
    for task, found in results["tasks"].items():
        shown = " · ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
        say(STEP, f"{task}: {shown} ({found['rows']} rows)")
    say(STEP, f"{len(rows)} row scores kept")
