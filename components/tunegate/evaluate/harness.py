"""lm-evaluation-harness, asked about one model.

Our own tasks get prompts that are rendered already, so the harness applies no chat template to them and adds no special
token. Its own tasks are asked with the model's chat template, applied by the harness.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tunegate.contracts.progress import say
from tunegate.evaluate.asked import Task, known_tasks, task_manager
from tunegate.evaluate.documents import Document
from tunegate.evaluate.halving import STEP
from tunegate.evaluate.measured import Asked, Measured
from tunegate.evaluate.noise import again, compared, rows_again
from tunegate.evaluate.own.documents import harness_config
from tunegate.evaluate.rows import metric_name, row_names, scored_rows
from tunegate.evaluate.settings import EvaluateSettings

#: Makes the model as the harness wants it: whether prompts come rendered, and how many rows it answers at once.
MakeModel = Callable[[bool, int], Any]

#: (task, place in its rows) → which of a task's rows are asked; None: all.
Chosen = Mapping[str, list[int]]


def tasks_folder() -> Path:
    """Where the YAML files of the tasks on the data set's rows lie."""
    return Path(str(resources.files("tunegate.evaluate") / "tasks"))


def measure(
    task: Task, settings: EvaluateSettings, *, make_model: MakeModel, docs: Sequence[Document], templated: bool
) -> dict[str, Measured]:
    """Asks a model one task; its name → what was found, or the name of each of its parts where it is a group.

    Args:
        task: what is asked.
        settings: how.
        make_model: see :data:`MakeModel`.
        docs: the task's rows, where it is ours.
        templated: whether the model has a chat template.
    """
    say(STEP, f"asking {task.name}")

    def ask(rows_at_once: int, chosen: Chosen | None) -> tuple[Mapping[str, Any], int]:
        model = make_model(task.ours, rows_at_once)
        with _no_surroundings(), _loaded(task, settings, docs) as loaded:
            parts = [part for name, part in loaded.items() if chosen is None or name in chosen]
            found = _evaluate(settings, task, model, parts, templated=templated and not task.ours, chosen=chosen)
            questions = {} if task.ours else {name: _questions(loaded[name]) for name in found["samples"]}
        return {**found, "questions": questions}, model.batch_size

    found, fitted = ask(settings.batch_size, None)
    measured = {name: _measured(task, name, found, fitted) for name in found["samples"]}
    if settings.noise_rows:
        at_once = again(fitted)
        chosen = rows_again(found["samples"], settings.noise_rows)
        count = sum(map(len, chosen.values()))
        say(STEP, f"asking {count} row(s) of {task.name} again, {at_once} at once, to measure the noise floor")
        second, _ = ask(at_once, chosen)
        for name in chosen:
            names = row_names(found["samples"][name], ours=task.ours)
            rows = scored_rows(name, second["samples"][name], names, ours=task.ours)
            measured[name] = compared(measured[name], rows, rows_at_once=at_once)
    return measured


@contextlib.contextmanager
def _loaded(task: Task, settings: EvaluateSettings, docs: Sequence[Document]) -> Iterator[dict[str, Any]]:
    """The harness's task objects, by name; a group's are its parts."""
    if task.own:
        most = task.own.file.max_new_tokens or settings.max_new_tokens
        config = harness_config(task.own, docs, max_new_tokens=most)
        yield dict(task_manager().load([config])["tasks"])
    elif task.on_dataset:
        with tempfile.TemporaryDirectory(prefix="tunegate-evaluate-") as scratch:
            _write_task(task.name, docs, Path(scratch))
            yield dict(task_manager(scratch).load([task.name])["tasks"])
    else:
        yield dict(known_tasks().load([task.name])["tasks"])


def _write_task(name: str, docs: Sequence[Document], scratch: Path) -> None:
    """The task's YAML file, including the one of the package and naming the rows of this run."""
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs), "utf-8")
    kwargs = {"data_files": {"test": str(rows)}, "cache_dir": str(scratch / "arrow")}
    config = {"include": str(tasks_folder() / name / f"{name}.yaml"), "task": name, "dataset_kwargs": kwargs}
    (scratch / f"{name}.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML


def _evaluate(
    settings: EvaluateSettings, task: Task, model: Any, parts: Sequence[Any], *, templated: bool, chosen: Chosen | None
) -> Mapping[str, Any]:
    """Runs the harness once."""
    from lm_eval import simple_evaluate

    found: Mapping[str, Any] = simple_evaluate(
        model=model,
        tasks=list(parts),
        task_manager=task_manager(),  # the tasks are loaded; without one, the harness reads all of its own again
        apply_chat_template=templated,
        gen_kwargs={"max_gen_toks": settings.max_new_tokens} if task.on_dataset else None,
        limit=settings.limit or None if chosen is None else None,
        samples=None if chosen is None else {name: list(rows) for name, rows in chosen.items()},
        log_samples=True,
        bootstrap_iters=0,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    return found


def _measured(task: Task, name: str, found: Mapping[str, Any], fitted: int) -> Measured:
    samples = found["samples"][name]
    names = row_names(samples, ours=task.ours)
    asked = {names[int(s["doc_id"])]: _asked(s, found["questions"].get(name)) for s in samples}
    rows = scored_rows(name, samples, names, ours=task.ours)
    return Measured(_aggregates(found["results"][name]), rows, asked, fitted)


def _asked(sample: Mapping[str, Any], questions: Callable[[Any], str] | None) -> Asked:
    """What a row asks: its document says it where that is ours; the harness's own is asked for it."""
    if questions is None:
        return Asked(sample["doc"]["question"], sample["doc"]["expected"])
    return Asked(questions(sample["doc"]), str(sample["target"]))


def _questions(task: Any) -> Callable[[Any], str]:
    def question(doc: Any) -> str:
        """The bare question; where the choices are what is read, all texts of the document."""
        text = task.doc_to_text(doc)
        if isinstance(text, str) and text:
            return text
        return (
            "\n".join(value for value in doc.values() if isinstance(value, str)) if isinstance(doc, dict) else str(doc)
        )

    return question


@contextlib.contextmanager
def _no_surroundings() -> Iterator[None]:
    """Keeps the harness from asking pip and git about this machine.

    That takes seconds, says nothing that the manifest does not, and git complains aloud where there is no repository.
    """
    from lm_eval import evaluator

    asked = evaluator.add_env_info, evaluator.get_git_commit_hash
    evaluator.add_env_info, evaluator.get_git_commit_hash = lambda storage: None, lambda: None
    try:
        yield
    finally:
        evaluator.add_env_info, evaluator.get_git_commit_hash = asked


def _aggregates(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one task; the harness names them ``metric,filter`` with ``none`` for no filter."""
    metrics: dict[str, float] = {}
    for key, value in result.items():
        name, _, chosen = key.partition(",")
        if chosen and not name.endswith("_stderr") and isinstance(value, int | float):
            metrics[metric_name(name, chosen)] = float(value)
    return metrics
