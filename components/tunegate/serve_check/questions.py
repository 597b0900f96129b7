"""What the server is asked: held-out conversations as they are, and the token ids that evaluation made of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunegate.contracts.errors import ArtifactError, SettingsError
from tunegate.contracts.files import read_json_lines
from tunegate.contracts.manifest import EVALUATION_ROWS_NAME, VALIDATION_ROWS_NAME
from tunegate.models.chat import Message, ended_text, prompt_only, token_ids
from tunegate.models.probe import Probe, ProbeRow
from tunegate.serve_check.scores import SCORERS, Evaluated

Side = Literal["validation", "evaluation"]

PROBE: Side = "validation"
EVALUATED: Side = "evaluation"


@dataclass(frozen=True)
class Question:
    """One held-out row, as it is asked.

    Attributes:
        row_id: as in the data set.
        side: whether it is a validation row, or one that was evaluated.
        messages: the conversation up to the answer, which the server renders itself; empty for a row of plain text.
        text: a row of plain text; empty for a conversation.
        rendered_ids: what evaluation makes of messages or text.
        prompt_ids: what the answer continues.
        given_ids: tokens behind the prompt whose log-probabilities are asked; none for an evaluated row.
        max_tokens: where the answer is cut.
        kept: what the evaluation kept of it; None for a validation row.
    """

    row_id: str
    side: Side
    messages: tuple[Message, ...]
    text: str
    rendered_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    given_ids: tuple[int, ...]
    max_tokens: int
    kept: Evaluated | None = None

    @property
    def needed_tokens(self) -> int:
        """The longest sequence that asking it takes."""
        return len(self.prompt_ids) + max(self.max_tokens, len(self.given_ids) + 1)


def probe_questions(
    probe: Probe, dataset: Path, tokenizer: Any, *, max_new_tokens: int, context_tokens: int
) -> list[Question]:
    """The probe rows as questions; an answer is cut where the context ends.

    Args:
        probe: the rows, as the evaluated model reads them.
        dataset: what prepare wrote.
        tokenizer: the evaluated model's.
        max_new_tokens: where an answer is cut.
        context_tokens: the longest prompt and answer together.
    """
    wanted = {row.row_id for row in probe.rows}
    stored = {
        str(row["id"]): row for row in read_json_lines(dataset / VALIDATION_ROWS_NAME) if str(row["id"]) in wanted
    }
    return [
        _probe_question(row, stored[row.row_id], tokenizer, min(max_new_tokens, context_tokens - row.start))
        for row in probe.rows
    ]


def _probe_question(row: ProbeRow, stored: Mapping[str, Any], tokenizer: Any, max_tokens: int) -> Question:
    prompt, given = row.token_ids[: row.start], row.scored_ids
    if "prompt" in stored:
        messages: tuple[Message, ...] = tuple(stored["prompt"])
        return Question(row.row_id, PROBE, messages, "", prompt, prompt, given, max_tokens)
    text = ended_text(tokenizer, stored["text"])
    rendered = tuple(tokenizer(text)["input_ids"])
    return Question(row.row_id, PROBE, (), text, rendered, prompt, given, max_tokens)


def evaluated_questions(
    dataset: Path, tokenizer: Any, kept: Sequence[Mapping[str, Any]], *, rows: int, max_new_tokens: int
) -> list[Question]:
    """The first evaluated rows that the evaluated model answered, with its answers.

    Args:
        dataset: what prepare wrote.
        tokenizer: the evaluated model's.
        kept: each row, task and metric of the evaluation, as it lies in ``rows.parquet``.
        rows: how many.
        max_new_tokens: where the evaluation cut an answer.

    Raises:
        SettingsError: when the evaluation generated no answer to a prompt that this tokenizer renders of these rows.
        ArtifactError: when its scores are not what its answers are worth here.
    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in kept:
        if line["task"] in SCORERS:
            lines[str(line["row_id"]), line["prompt_digest"]].append(line)
    stored = sorted(read_json_lines(dataset / EVALUATION_ROWS_NAME), key=lambda row: str(row["id"]))
    found: list[Question] = []
    for row in (row for row in stored if "prompt" in row):
        text = prompt_only(tokenizer, row["prompt"])
        of_row = lines.get((str(row["id"]), hashlib.sha256(text.encode()).hexdigest()))
        if of_row and len(found) < rows:
            ids, messages = tuple(token_ids(tokenizer, text)), tuple(row["prompt"])
            known = _evaluated(of_row, str(row["fields"]))
            found.append(Question(str(row["id"]), EVALUATED, messages, "", ids, ids, (), max_new_tokens, known))
    if not found:
        raise SettingsError(
            "serve_check.evaluation_rows asks for answers that the evaluation does not have.",
            seen="no generated answer to a prompt that this model renders of the data set's rows",
            expected="an evaluation with a task that generates, such as tool_call",
            remedy="add one to evaluate.tasks, or set serve_check.evaluation_rows to 0",
        )
    _check_scores(found)
    return found


def _evaluated(lines: Sequence[Mapping[str, Any]], fields: str) -> Evaluated:
    scores = {str(line["metric"]): float(line["score"]) for line in lines}
    return Evaluated(str(lines[0]["task"]), fields, str(lines[0]["answer"]), scores)


def _check_scores(questions: Sequence[Question]) -> None:
    """Refuses an evaluation that was scored otherwise than answers are scored here: its scores compare with nothing.

    Raises:
        ArtifactError: naming the rows.
    """
    other = [
        f"row {q.row_id}" for q in questions if q.kept is not None and q.kept.score(q.kept.answer) != q.kept.scores
    ]
    if other:
        raise ArtifactError(
            "The evaluation's scores are not what its answers are worth.",
            seen=f"{len(other)} of {len(questions)} kept answers that are scored otherwise here",
            expected="an evaluation by the same version of tunegate",
            remedy="evaluate the model again",
            items=other,
        )


def check_lengths(questions: Sequence[Question], *, context_tokens: int) -> None:
    """Refuses a served context in which a question would be cut, before anything starts.

    Raises:
        SettingsError: naming the rows.
    """
    long = [f"row {q.row_id}: {q.needed_tokens} tokens" for q in questions if q.needed_tokens > context_tokens]
    if long:
        raise SettingsError(
            "The model would be served with a shorter context than it was evaluated with.",
            seen=f"{len(long)} of {len(questions)} rows do not fit into {context_tokens} tokens with their answer",
            expected="room for every prompt and answer of the evaluation",
            remedy="raise serving.max_model_len, or evaluate with a lower evaluate.max_new_tokens",
            items=long,
        )
