"""lm-evaluation-harness, asked about one loaded model.

Our own tasks get prompts that are rendered already, so the harness applies no chat template to them and adds no special
token. Its own tasks are asked with the model's chat template, applied by the harness.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.progress import say
from tunegate.evaluate.documents import LOCAL_TASKS, Document
from tunegate.evaluate.harness_model import harness_model
from tunegate.evaluate.settings import EvaluateSettings

STEP = "evaluate"


@dataclass(frozen=True)
class Measured:
    """What the harness found for one task: its aggregates and one sample a row."""

    aggregates: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]


def tasks_folder() -> Path:
    """Where our own tasks' YAML files lie."""
    return Path(str(resources.files("tunegate.evaluate") / "tasks"))


def check_tasks(names: Sequence[str]) -> None:
    """Refuses a task that neither we nor the harness know.

    Raises:
        SettingsError: naming the nearest known task.
    """
    if not names or len(set(names)) != len(names):
        raise SettingsError(
            "evaluate.tasks cannot be used.",
            seen=", ".join(names) or "no task",
            expected="at least one task, each once",
            remedy=f"for example: {', '.join(LOCAL_TASKS)}",
        )
    if foreign := [name for name in names if name not in LOCAL_TASKS]:
        _check_foreign(foreign)


def _check_foreign(names: Sequence[str]) -> None:
    import difflib

    from lm_eval.tasks import TaskManager

    known = [*LOCAL_TASKS, *TaskManager().all_tasks]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise SettingsError(
                f"evaluate.tasks names an unknown task: {name!r}.",
                seen=repr(name),
                expected=f"one of {', '.join(LOCAL_TASKS)}, or a task of lm-evaluation-harness",
                remedy=f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks lists what there is",
            )


def measure(settings: EvaluateSettings, *, model: Any, tokenizer: Any, docs: Sequence[Document]) -> dict[str, Measured]:
    """Asks the model every task; task → what was found."""
    found: dict[str, Measured] = {}
    if local := [name for name in settings.tasks if name in LOCAL_TASKS]:
        with tempfile.TemporaryDirectory(prefix="tunegate-evaluate-") as scratch:
            _write_tasks(local, docs, Path(scratch))
            found |= _evaluate(settings, model, tokenizer, local, ours=Path(scratch))
    if foreign := [name for name in settings.tasks if name not in LOCAL_TASKS]:
        found |= _evaluate(settings, model, tokenizer, foreign, ours=None)
    return found


def _write_tasks(names: Sequence[str], docs: Sequence[Document], scratch: Path) -> None:
    """Our tasks' YAML files, each including the one of the package and naming the rows of this run."""
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs), "utf-8")
    kwargs = {"data_files": {"test": str(rows)}, "cache_dir": str(scratch / "arrow")}
    for name in names:
        config = {"include": str(tasks_folder() / name / f"{name}.yaml"), "task": name, "dataset_kwargs": kwargs}
        (scratch / f"{name}.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML


def _evaluate(
    settings: EvaluateSettings, model: Any, tokenizer: Any, tasks: Sequence[str], *, ours: Path | None
) -> dict[str, Measured]:
    """Runs the harness once: for our tasks, whose YAML lies in ``ours``, or for its own."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    say(STEP, f"asking {', '.join(tasks)}")
    with _no_surroundings():
        found = simple_evaluate(
            model=harness_model(model, tokenizer, batch_size=settings.batch_size, rendered=ours is not None),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=None if ours is None else str(ours), include_defaults=ours is None),
            apply_chat_template=ours is None and bool(tokenizer.chat_template),
            gen_kwargs=None if ours is None else {"max_gen_toks": settings.max_new_tokens},
            limit=settings.limit or None if ours is None else None,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    return {
        task: Measured(_aggregates(found["results"][task]), tuple(samples))
        for task, samples in found["samples"].items()
    }


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


def metric_name(metric: str, chosen_filter: str) -> str:
    """A metric's name, with its filter where the task has one."""
    return metric if chosen_filter == "none" else f"{metric},{chosen_filter}"
