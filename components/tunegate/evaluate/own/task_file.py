"""A task file: what is asked, of which rows, and how an answer is scored. Parsed strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tunegate.contracts.errors import ArtifactError, SettingsError
from tunegate.contracts.files import checked_relative_path
from tunegate.contracts.settings import parse_settings, setting
from tunegate.evaluate.own.templates import template_problem

#: Type → the keys it needs and those it may have, beside name, type, data, row_id and tags.
KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "exact_match": (frozenset({"answer"}), frozenset({"ignore_case", "max_new_tokens"})),
    "multiple_choice": (frozenset({"choices", "answer"}), frozenset()),
    "regex": (frozenset({"pattern"}), frozenset({"answer", "ignore_case", "max_new_tokens"})),
    "json": (frozenset({"answer"}), frozenset({"max_new_tokens"})),
    "tool_call": (frozenset(), frozenset({"max_new_tokens"})),
    "perplexity": (frozenset({"answer"}), frozenset()),
    "python": (frozenset({"scorer", "score_range"}), frozenset({"answer", "max_new_tokens"})),
}
TYPES = tuple(KEYS)

#: Types whose answer the model writes; of the others only the likelihood is asked.
GENERATED = ("exact_match", "regex", "json", "tool_call", "python")

_ALWAYS = {"name", "type", "data", "row_id", "tags"}
_PROMPT = {"prompt", "system", "messages"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_SCORER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TaskFile:
    """What a task file says. Texts with ``{{column}}`` are filled from each row."""

    name: str = setting(help="what policy and pages call the task: a-z, 0-9 and _")
    type: str = setting(help="how an answer is scored", choices=TYPES)
    data: str = setting(help="the rows, a JSON Lines file beside or below the task file")
    prompt: str = setting("", help="what the user says, rendered with the model's chat template")
    system: str = setting("", help="a system message before it")
    messages: tuple[Any, ...] = setting((), help="several turns in place of prompt: a list of {role, content}")
    answer: str = setting("", help="the right answer")
    choices: Any = setting(  # noqa: RUF009 - as above; ruff knows no Any
        (), help="multiple_choice: a list of texts, or the name of a column that holds one"
    )
    pattern: str = setting("", help="regex: what to find in the answer; with 'answer', its group must equal that")
    scorer: str = setting("", help="python: package.module:function of an installed distribution")
    score_range: tuple[float, ...] = setting((), help="python: [lowest, highest] score")
    ignore_case: bool = setting(False, help="whether case does not count")
    max_new_tokens: int = setting(
        0, help="where an answer is cut; 0: as evaluate.max_new_tokens", unit="tokens", minimum=0
    )
    row_id: str = setting("", help="the column that names a row; otherwise a digest of its content does")
    tags: tuple[str, ...] = setting((), help="columns by whose values results are sliced")

    @property
    def generated(self) -> bool:
        """Whether the model writes an answer."""
        return self.type in GENERATED

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The turns before the answer, as (role, template); none where a text is scored without a prompt."""
        if self.messages:
            return tuple((message["role"], message["content"]) for message in self.messages)
        return tuple((role, text) for role, text in (("system", self.system), ("user", self.prompt)) if text)


def parse_task_file(document: Any, *, where: str) -> TaskFile:
    """A task file's YAML document as a :class:`TaskFile`.

    Raises:
        SettingsError: for an unknown key (naming the nearest), one that the type does not use or lacks, a template, a
            pattern or a name that cannot be used.
    """
    task = parse_settings(TaskFile, document, where=where)
    given = {name for name in document if document[name] not in ("", (), [], None)}
    needed, optional = KEYS[task.type]
    if task.type != "perplexity" and not given & {"prompt", "messages"}:
        needed = needed | {"prompt"}
    problems = [f"{name} is missing" for name in sorted(needed - given)]
    problems += [f"{name} means nothing here" for name in sorted(given - needed - optional - _ALWAYS - _PROMPT)]
    problems += _problems(task)
    if problems:
        raise SettingsError(
            f"{where} cannot be used as a task of type {task.type}.",
            seen=f"{len(problems)} problem(s)",
            expected=f"name, type, data, prompt, {', '.join(sorted(KEYS[task.type][0])) or 'and no more'}"
            f" (also: {', '.join(sorted(optional | {'system', 'messages', 'row_id', 'tags'}))})",
            remedy=f"correct {where}",
            items=problems,
        )
    return task


def _problems(task: TaskFile) -> list[str]:
    found = []
    if not _NAME.fullmatch(task.name):
        found.append(f"name {task.name!r}: a-z, 0-9 and _ only")
    try:
        checked_relative_path(task.data)
    except ArtifactError as error:
        found.append(f"data {task.data!r}: {error.expected}")
    if task.messages and (task.prompt or task.system):
        found.append("messages stands in place of prompt and system")
    found += [f"messages[{place}]: {problem}" for place, m in enumerate(task.messages) if (problem := _turn_problem(m))]
    if task.messages and not found and task.messages[-1]["role"] != "user":
        found.append("the last of messages is not the user's")
    if task.system and not task.prompt:
        found.append("system needs a prompt")
    if task.scorer and not _SCORER.fullmatch(task.scorer):
        found.append(f"scorer {task.scorer!r}: package.module:function, never a path")
    if task.score_range and (len(task.score_range) != 2 or not task.score_range[0] < task.score_range[1]):
        found.append(f"score_range {list(task.score_range)}: [lowest, highest]")
    found += [*_choice_problems(task), *_pattern_problems(task)]
    return found or _template_problems(task)


def _turn_problem(message: Any) -> str:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        return "not {role, content}"
    if message["role"] not in _ROLES or not isinstance(message["content"], str):
        return f"role is one of {', '.join(_ROLES)}, content is text"
    return ""


def _choice_problems(task: TaskFile) -> list[str]:
    if isinstance(task.choices, str):
        return []
    if isinstance(task.choices, list | tuple) and all(isinstance(choice, str) for choice in task.choices):
        return []
    return ["choices is neither a list of texts nor the name of a column"]


def _pattern_problems(task: TaskFile) -> list[str]:
    try:
        groups = re.compile(task.pattern).groups
    except re.error as error:
        return [f"pattern: {error}"]
    return ["pattern has several groups: one is compared with answer"] if task.answer and groups > 1 else []


def _template_problems(task: TaskFile) -> list[str]:
    texts = {"answer": task.answer, **{f"{role} turn": text for role, text in task.turns}}
    if not isinstance(task.choices, str):
        texts |= {f"choices[{place}]": text for place, text in enumerate(task.choices)}
    return [f"{name}: {problem}" for name, text in texts.items() if (problem := template_problem(text))]


#: Every key, for documents and tests.
ALL_KEYS = tuple(field.name for field in fields(TaskFile))
