"""A user's rows as the harness gets them: prompts rendered with the chat template, once; and the task as its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.evaluate.documents import Document, text_document
from tunegate.evaluate.own.rows import OwnRow
from tunegate.evaluate.own.scores import LOWER_IS_BETTER, METRICS, scores_of
from tunegate.evaluate.own.task import OwnTask
from tunegate.models.chat import prompt_only, render, token_ids

_OUTPUT_TYPES = {"multiple_choice": "multiple_choice", "perplexity": "loglikelihood"}


def own_documents(tokenizer: Any, task: OwnTask, *, limit: int) -> list[Document]:
    """The first ``limit`` rows (0: all) as documents of the harness.

    Raises:
        ModelError: when the tokenizer has no chat template, or does not keep prompt and answer apart.
    """
    if not tokenizer.chat_template and task.file.turns:
        raise ModelError(
            f"The task {task.file.name} cannot be asked: the tokenizer has no chat template.",
            seen="chat_template is empty",
            expected="the template with which the model will be served",
            remedy="use an instruction-tuned base, or add chat_template.jinja to it",
        )
    rows = task.rows[:limit] if limit else task.rows
    return [_document(tokenizer, task, row) for row in rows]


def _document(tokenizer: Any, task: OwnTask, row: OwnRow) -> Document:
    common = {
        "row_id": row.row_id,
        "fields": json.dumps(row.fields),
        "expected": row.answer,
        "question": "\n".join(turn["content"] for turn in row.turns if turn["role"] == "user") or row.answer,
        "tags": list(row.tags),
        "options": list(row.choices),
    }
    if not row.turns:
        return {**text_document(tokenizer, row.answer), **common, "choices": []}
    if task.file.generated:
        prompt = prompt_only(tokenizer, row.turns)
        asked = {"prompt_text": prompt, "completion_text": "", "choices": []}
        return {**asked, **common, "prompt_tokens": len(token_ids(tokenizer, prompt)), "completion_tokens": 0}
    rendered = [
        render(tokenizer, row.turns, [{"role": "assistant", "content": text}]) for text in row.choices or (row.answer,)
    ]
    return {
        "prompt_text": rendered[0].prompt_text,
        "completion_text": rendered[0].completion_text,
        "choices": [one.completion_text for one in rendered] if row.choices else [],
        "prompt_tokens": len(rendered[0].prompt_ids),
        "completion_tokens": max(len(one.completion_ids) for one in rendered),
        **common,
    }


def harness_config(task: OwnTask, docs: Sequence[Mapping[str, Any]], *, max_new_tokens: int) -> dict[str, Any]:
    """The task as lm-evaluation-harness's own configuration.

    Columns are named rather than put into templates, so that the harness renders nothing: what a row says is never
    taken for a template.
    """
    kind = task.file.type
    config: dict[str, Any] = {
        "task": task.file.name,
        "custom_dataset": lambda **_: {"test": _dataset(docs)},
        "test_split": "test",
        "output_type": _OUTPUT_TYPES.get(kind, "generate_until"),
        "doc_to_text": "prompt_text",
        "doc_to_target": "completion_text",
        "target_delimiter": "",
        "process_results": scores_of(task),
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": metric not in LOWER_IS_BETTER}
            for metric, aggregation in METRICS[kind].items()
        ],
    }
    if kind == "multiple_choice":
        config |= {"doc_to_choice": "choices", "doc_to_target": lambda doc: doc["options"].index(doc["expected"])}
    if task.file.generated:
        # The end of the turn ends an answer.
        config["generation_kwargs"] = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
    return config


def _dataset(docs: Sequence[Mapping[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([dict(doc) for doc in docs])
