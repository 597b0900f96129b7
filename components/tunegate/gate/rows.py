"""Per-row scores of an evaluation, and their pairing. What cannot be paired row by row is refused, never repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegate.contracts.errors import ArtifactError
from tunegate.gate.policy import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_NAME = "rows.parquet"

#: The columns the gate reads, with the kinds of Arrow type it takes.
_COLUMNS = {
    "row_id": ("string", "large_string"),
    "task": ("string", "large_string"),
    "metric": ("string", "large_string"),
    "score": ("double", "float"),
    "prompt_digest": ("string", "large_string"),
    "answer": ("string", "large_string"),
}

#: The column of slices, with the kinds of Arrow type it takes: a row may carry no tag.
_TAGS = "tags"
_TAG_LISTS = tuple(
    f"{kind}<{name}: {text}>"
    for kind in ("list", "large_list")
    for name in ("item", "element")
    for text in _COLUMNS["row_id"]
)

#: Which turns belong together. Evaluations of before have no such column, and a row that stands alone is empty there.
_CONVERSATION = "conversation"


@dataclass(frozen=True)
class Row:
    """One row's score under one metric, as the evaluation wrote it."""

    row_id: str
    score: float
    prompt_digest: str
    answer: str
    tags: tuple[str, ...] = ()
    conversation: str = ""


#: (task, metric) → its rows.
Rows = Mapping[tuple[str, str], Sequence[Row]]


@dataclass(frozen=True)
class Series:
    """One model's scores under one metric, in the order of the row ids.

    Attributes:
        row_ids: unique, sorted.
        scores: shape (rows,), finite.
        answers: what the model said.
        prompt_digests: what it was asked.
        tags: the slices that each row belongs to, sorted.
        conversations: of which each row is a turn; empty where it stands alone.
    """

    row_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    answers: tuple[str, ...]
    prompt_digests: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    conversations: tuple[str, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """What each row is judged with: its conversation, or itself alone."""
        return tuple(one or row_id for one, row_id in zip(self.conversations, self.row_ids, strict=True))


def read_rows(folder: Path) -> Rows:
    """Reads an evaluation's ``rows.parquet``.

    Raises:
        ArtifactError: when it is absent, unreadable, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / ROWS_NAME
    if not path.is_file():
        raise _unusable(f"{folder.name} holds no {ROWS_NAME}.", "no such file", "the scores of every row")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _unusable(f"{ROWS_NAME} cannot be read.", f"{type(error).__name__}: {error}", "a Parquet file") from error
    types = dict.fromkeys((*_COLUMNS, _TAGS), "missing") | {field.name: str(field.type) for field in table.schema}
    kinds = {**_COLUMNS, _TAGS: _TAG_LISTS}
    if _CONVERSATION in types:
        kinds[_CONVERSATION] = _COLUMNS["row_id"]
    wrong = [f"{name}: {types[name]}" for name, allowed in kinds.items() if types[name] not in allowed]
    nulls = [name for name in _COLUMNS if not wrong and table.column(name).null_count]
    if wrong or nulls:
        seen = ", ".join(wrong or [f"{name}: empty values" for name in nulls])
        raise _unusable(f"{ROWS_NAME} has other columns.", seen, f"filled columns {', '.join(kinds)}")
    columns = [table.column(name).to_pylist() for name in (*_COLUMNS, _TAGS)]
    columns.append(table.column(_CONVERSATION).to_pylist() if _CONVERSATION in types else [""] * table.num_rows)
    found: dict[tuple[str, str], list[Row]] = {}
    for row_id, task, metric, score, prompt, answer, tags, conversation in zip(*columns, strict=True):
        row = Row(row_id, score, prompt, answer, tuple(sorted(filter(None, tags or ()))), conversation or "")
        found.setdefault((task, metric), []).append(row)
    return found


def series(rows: Rows, rule: Rule, role: str, results: Mapping[str, Any]) -> Series:
    """One model's scores for a rule.

    Raises:
        ArtifactError: when there are none, a row comes twice, a score is not finite or out of range, or the count is
            not the one that the evaluation states.
    """
    import numpy as np

    label = f"{role}, {rule.task}.{rule.metric}"
    found = sorted(rows.get((rule.task, rule.metric), ()), key=lambda row: row.row_id)
    if not found:
        known = ", ".join(sorted(f"{task}.{metric}" for task, metric in rows)) or "nothing"
        raise _unusable(f"{label}: no rows.", known, "the scores of every row")
    twice = [row_id for row_id, count in Counter(row.row_id for row in found).items() if count > 1]
    if twice:
        raise _unusable(f"{label}: rows come more than once.", f"{len(twice)} duplicated ids", "each row once", twice)
    scores = np.array([row.score for row in found], dtype=np.float64)
    infinite = [row.row_id for row, finite in zip(found, np.isfinite(scores), strict=True) if not finite]
    if infinite:
        raise _unusable(f"{label}: scores are not finite.", f"{len(infinite)} NaN or infinite", "numbers", infinite)
    low, high = rule.score_range or (0.0, 1.0)
    allowed = (scores >= low) & (scores <= high) if rule.score_range else np.isin(scores, (0.0, 1.0))
    outside = [f"{row.row_id}: {row.score:g}" for row, ok in zip(found, allowed, strict=True) if not ok]
    if outside and (rule.compares or rule.score_range):
        expected = f"{low:g} to {high:g}" if rule.score_range else "0 or 1, or a score_range in the policy"
        raise _unusable(f"{label}: scores out of range.", f"{len(outside)} of {len(found)} rows", expected, outside)
    stated = _stated_rows(results, rule.task)
    if stated != len(found):
        raise _unusable(f"{label}: rows are missing.", f"{len(found)} rows", f"{stated} rows, as results.json states")
    return Series(
        tuple(row.row_id for row in found),
        scores,
        tuple(row.answer for row in found),
        tuple(row.prompt_digest for row in found),
        tuple(row.tags for row in found),
        tuple(row.conversation for row in found),
    )


def in_slice(whole: Series, tag: str) -> Series:
    """The rows that carry a tag.

    Raises:
        ArtifactError: when there are none.
    """
    inside = [i for i, tags in enumerate(whole.tags) if tag in tags]
    if not inside:
        known = ", ".join(sorted({tag for tags in whole.tags for tag in tags})) or "no slices"
        raise _unusable(f"No row carries the tag {tag!r}.", known, "a slice that evaluate.tags makes")
    return Series(
        tuple(whole.row_ids[i] for i in inside),
        whole.scores[inside],
        tuple(whole.answers[i] for i in inside),
        tuple(whole.prompt_digests[i] for i in inside),
        tuple(whole.tags[i] for i in inside),
        tuple(whole.conversations[i] for i in inside),
    )


def check_paired(candidate: Series, reference: Series) -> None:
    """Refuses two series that are not the same rows asked the same way.

    Raises:
        ArtifactError: naming rows that only one has, or whose prompts differ.
    """
    only = sorted(set(candidate.row_ids) ^ set(reference.row_ids))
    if only:
        raise _unusable("The models were not scored on the same rows.", f"{len(only)} unpaired", "the same rows", only)
    prompts = zip(candidate.row_ids, candidate.prompt_digests, reference.prompt_digests, strict=True)
    other = [row_id for row_id, one, two in prompts if one != two]
    if other:
        raise _unusable("The models were not asked the same.", f"{len(other)} prompts differ", "equal prompts", other)
    moved = [i for i, one, two in zip(candidate.row_ids, candidate.tags, reference.tags, strict=True) if one != two]
    if moved:
        raise _unusable("The models' rows are in other slices.", f"{len(moved)} rows differ", "equal tags", moved)
    torn = [i for i, one, two in zip(candidate.row_ids, candidate.units, reference.units, strict=True) if one != two]
    if torn:
        raise _unusable(
            "The models' rows are of other conversations.", f"{len(torn)} rows differ", "equal conversations", torn
        )


def _stated_rows(results: Mapping[str, Any], task: str) -> Any:
    tasks = results.get("tasks")
    entry = tasks.get(task) if isinstance(tasks, Mapping) else None
    return entry.get("rows") if isinstance(entry, Mapping) else None


def _unusable(failed: str, seen: str, expected: str, items: Sequence[str] = ()) -> ArtifactError:
    return ArtifactError(failed, seen=seen, expected=expected, remedy="evaluate the model again", items=items)
