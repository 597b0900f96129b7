"""evaluate: one model on the held-out rows and on those of its tasks; the score of every row is kept."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import SettingsError
from tunegate.contracts.files import pretty_json, sha256_json
from tunegate.contracts.manifest import (
    Manifest,
    evaluation_rows_digest,
    input_digest,
    tool_versions,
    verify,
)
from tunegate.contracts.overlap import OVERLAP_THRESHOLD
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.evaluate.asked import Task, read_tasks
from tunegate.evaluate.documents import (
    COMPLETION_PERPLEXITY,
    Document,
    Row,
    check_completions,
    check_lengths,
    check_rows,
    documents,
    read_rows,
)
from tunegate.evaluate.halving import STEP
from tunegate.evaluate.harness import measure
from tunegate.evaluate.overlap import find_overlap, learned_digest, read_learned
from tunegate.evaluate.own.documents import own_documents
from tunegate.evaluate.page import evaluation_page
from tunegate.evaluate.results import Found, results_document, summary, tell
from tunegate.evaluate.reuse import Work, keep, kept
from tunegate.evaluate.rows import write_rows
from tunegate.evaluate.served_model import Served, find_served, served_model
from tunegate.evaluate.settings import REACHED_BY, EvaluateSettings
from tunegate.models.files import check_model_folder, read_config
from tunegate.serving.client import Client

KIND = "evaluation"

#: The distributions that decide how a model answers.
ENGINE = ("lm-eval", "torch", "transformers", "compressed-tensors")


@dataclass(frozen=True)
class _Asked:
    """What one evaluation is of, checked and before a model is loaded.

    Attributes:
        model: the model's folder.
        dataset: what prepare wrote, with its manifest; None where no task asks its rows.
        tasks: what is asked.
        rows: the data set's evaluation rows that are asked.
        parents: digests of all inputs.
        engine: what is computed with.
        served: the model on a server; None where it is loaded here.
    """

    model: Path
    dataset: tuple[Path, Manifest] | None
    tasks: tuple[Task, ...]
    rows: Sequence[Row]
    parents: Mapping[str, str]
    engine: Mapping[str, Any]
    served: Served | None


def run(
    settings: EvaluateSettings,
    *,
    model: Path,
    dataset: Path | None,
    output: Path,
    reuse: Path | None = None,
    api_key: str = "",
) -> Manifest:
    """Evaluates ``model`` on the evaluation rows of ``dataset`` and on the rows that its tasks bring.

    Args:
        settings: what to ask.
        model: a model folder: a base, a merged or a quantized model.
        dataset: what prepare made; None for a first look at tasks that bring their own rows. No gate takes that.
        output: where the evaluation goes.
        reuse: a folder of finished tasks by work digest; the same work done before is taken from it, and new work is
            kept in it. Without one, finished tasks are kept beside ``output`` until all are, so that a killed
            evaluation goes on.
        api_key: of the server, where one is asked; it is written nowhere.

    Raises:
        DataError: when rows cannot be scored or do not fit into the model.
        ModelError, SettingsError, ArtifactError, OutputExistsError: before the model is loaded.
    """
    tasks = read_tasks(settings.tasks)
    check_model_folder(model)
    prepared = (dataset, verify(dataset, kind="dataset")) if dataset else None
    parents = _parents(model, prepared, tasks)
    document = _document(settings, tasks)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    rows = _rows(settings, tasks, dataset)
    served = find_served(_client(settings, api_key), parents["model"]) if settings.base_url else None
    asked = _Asked(model, prepared, tasks, rows, parents, _engine(settings, served), served)
    finished = reuse or output.with_name(output.name + ".tasks")

    def build(folder: Path) -> None:
        found, docs = _ask(settings, asked, finished)
        _write(settings, asked, found, docs, folder)

    manifest = produce(output, kind=KIND, parents=parents, settings=document, build=build)
    if reuse is None:
        shutil.rmtree(finished, ignore_errors=True)
    return manifest


def _parents(model: Path, prepared: tuple[Path, Manifest] | None, tasks: Sequence[Task]) -> dict[str, str]:
    """Digests of what the evaluation depends on: the train rows only where a task's own rows are compared with them."""
    parents = {"model": input_digest(model)}
    if prepared:
        parents["evaluation_rows"] = evaluation_rows_digest(prepared[1])
        if not all(task.on_dataset for task in tasks):
            parents["learned_rows"] = learned_digest(prepared[1])
    return parents | {f"task/{task.name}": task.own.digest for task in tasks if task.own}


def _document(settings: EvaluateSettings, tasks: Sequence[Task]) -> dict[str, Any]:
    """The settings with each task's name: where its file lies decides nothing; what it says is among the parents."""
    said = {name: value for name, value in settings_document(settings).items() if name not in REACHED_BY}
    return {**said, "tasks": [task.name for task in tasks]}


def _client(settings: EvaluateSettings, api_key: str) -> Client:
    return Client(
        settings.base_url.rstrip("/").removesuffix("/v1"),
        timeout_seconds=settings.request_timeout_seconds,
        patience_seconds=settings.patience_seconds,
        api_key=api_key,
    )


def _rows(settings: EvaluateSettings, tasks: Sequence[Task], dataset: Path | None) -> Sequence[Row]:
    """The data set's evaluation rows, checked; none when no task asks them."""
    names = [task.name for task in tasks if task.on_dataset]
    if not names:
        return ()
    if dataset is None:
        raise SettingsError(
            f"The task {names[0]} asks the rows of a data set.",
            seen="no data set",
            expected="what prepare wrote, or tasks that bring their own rows",
            remedy="give the data set, or leave the task out",
        )
    rows = read_rows(dataset, limit=settings.limit)
    check_rows(rows, names, settings.tags)
    if len(rows) < settings.limit:
        say(STEP, f"the data set has {len(rows)} evaluation rows, fewer than evaluate.limit asks for: all are used")
    return rows


def _ask(settings: EvaluateSettings, asked: _Asked, finished: Path) -> tuple[Found, Mapping[str, Sequence[Document]]]:
    """Asks every task that is not among the finished ones; the model is loaded when the first is asked."""
    from tunegate.evaluate.harness_model import harness_model
    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    @functools.cache
    def loaded() -> Any:
        say(STEP, f"loading {asked.model}")
        return load_causal_lm(asked.model, dtype=settings.dtype)

    found = []
    with quiet("lm_eval", "transformers", "datasets"):
        tokenizer = load_tokenizer(asked.model)
        docs = {task.name: _documents(settings, asked, task, tokenizer) for task in asked.tasks if task.ours}

        def make_model(rendered: bool, rows_at_once: int) -> Any:
            if asked.served:
                return served_model(asked.served, tokenizer, rows_at_once=rows_at_once, rendered=rendered)
            return harness_model(loaded(), tokenizer, batch_size=rows_at_once, rendered=rendered)

        for task in asked.tasks:
            work = _work(settings, asked, task)
            parts = kept(finished, work)
            if parts is None:
                of = docs.get(task.name, ())
                templated = bool(tokenizer.chat_template)
                parts = measure(task, settings, make_model=make_model, docs=of, templated=templated)
                keep(finished, work, parts)
            else:
                say(
                    STEP,
                    f"{task.name} was asked before, on the same rows in the same way: taken from {finished}",
                )
            found.append((task, parts))
    return found, docs


def _work(settings: EvaluateSettings, asked: _Asked, task: Task) -> Work:
    """What a task's results depend on, and no other task."""
    rows = task.rows_digest(asked.parents.get("evaluation_rows", ""))
    parents = {"model": asked.parents["model"], "rows": rows}
    return Work(parents, _document(settings, [task]), asked.engine)


def _documents(settings: EvaluateSettings, asked: _Asked, task: Task, tokenizer: Any) -> list[Document]:
    """A task's rows, rendered and checked."""
    if task.own:
        file = task.own.file
        docs = own_documents(tokenizer, task.own, limit=settings.limit)
        new_tokens = (file.max_new_tokens or settings.max_new_tokens) if file.generated else 0
        scored = file.type == "perplexity"
    else:
        docs = documents(tokenizer, asked.rows, settings.tags)
        new_tokens, scored = settings.max_new_tokens, task.name == COMPLETION_PERPLEXITY
    if scored:
        check_completions(docs)
    context_tokens = int(read_config(asked.model).get("max_position_embeddings", 1 << 30))
    if asked.served and asked.served.context_tokens:  # of which scoring needs one for an answer
        context_tokens = min(context_tokens, asked.served.context_tokens - 1)
    check_lengths(docs, context_tokens=context_tokens, new_tokens=new_tokens)
    return docs


def _write(
    settings: EvaluateSettings,
    asked: _Asked,
    found: Found,
    docs: Mapping[str, Sequence[Document]],
    folder: Path,
) -> None:
    """Fills the artifact."""
    results = results_document(
        found,
        model_digest=asked.parents["model"],
        evaluation_rows_digest=asked.parents.get("evaluation_rows"),
        rows_digest=_rows_digest(asked, docs, found),
        overlap=_overlap(asked, found),
        engine=dict(asked.engine),
        settings=_document(settings, asked.tasks),
        model_bytes=sum(path.stat().st_size for path in asked.model.glob("*.safetensors")),
    )
    measured = {name: one for _, parts in found for name, one in parts.items()}
    rows = [row for name in sorted(measured) for row in measured[name].rows]
    write_rows(rows, folder)
    (folder / "results.json").write_bytes(pretty_json(results))
    (folder / "summary.json").write_bytes(pretty_json(summary(results)))
    (folder / "page.html").write_text(evaluation_page(results, measured), "utf-8")
    tell(results)
    say(STEP, f"{len(rows)} row scores kept")


def _rows_digest(asked: _Asked, docs: Mapping[str, Sequence[Document]], found: Found) -> str:
    """Which rows were asked: those of the data set, those of each task of a user's own, and the harness's documents.

    The last are known by their digests alone: a task's name stays when its data changes.
    """
    own = {task.name: [str(doc["row_id"]) for doc in docs[task.name]] for task in asked.tasks if task.own}
    harness = {name: sorted(one.asked) for task, parts in found if not task.ours for name, one in parts.items()}
    ids = sorted(str(row["id"]) for row in asked.rows)
    brought = own | harness
    return sha256_json([ids, brought] if brought else ids)


def _overlap(asked: _Asked, found: Found) -> dict[str, Any] | None:
    """How many rows of each task with rows of its own training saw; None where no data set says."""
    own = {name: one.asked for task, parts in found if not task.on_dataset for name, one in parts.items()}
    if not own:
        return {}
    if asked.dataset is None:
        return None
    folder, manifest = asked.dataset
    threshold = float(manifest.settings.get("overlap_threshold", OVERLAP_THRESHOLD))
    say(STEP, f"comparing the rows of {', '.join(own)} with the train rows")
    return find_overlap(read_learned(folder), own, threshold=threshold)


def _engine(settings: EvaluateSettings, served: Served | None) -> dict[str, Any]:
    """What the model is computed with, known before it is loaded; of a server, its version."""
    from tunegate.models.load import compute_dtype, device_type

    versions = tool_versions()
    harness = {"name": "lm-evaluation-harness", **{name: versions[name] for name in ENGINE if name in versions}}
    if served:
        return {**harness, "vllm": served.version, "batch_size": settings.batch_size}
    return {
        **harness,
        "dtype": str(compute_dtype(settings.dtype)).removeprefix("torch."),
        "device": device_type(),
        "batch_size": settings.batch_size,
    }
