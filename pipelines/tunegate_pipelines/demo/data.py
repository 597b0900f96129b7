"""The demo's rows: the Berkeley Function Calling questions, out of the wheel ``bfcl-eval``, as chat messages.

An allowed answer in that data is, for each argument, a list of allowed values; ``""`` in it means that the argument may
be left out. Inside a dictionary, and inside a list of dictionaries, every value is again such a list (see
``dict_checker`` and ``list_dict_checker`` in ``bfcl_eval/eval_checker/ast_eval/ast_checker.py``).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import canonical_json, write_atomically
from tunegate.prepare.split import position

#: The distribution that carries the rows (Apache-2.0), and the folder inside it.
WHEEL = "bfcl-eval"
DATA_PATH = "bfcl_eval/data"
FILE = "BFCL_v4_simple_python.json"

INSTRUCTION = "Answer with one JSON call."

#: The demo recipe's ``prepare.evaluation_fraction``: the wrong rows are wrong on the other sides only.
EVALUATION_FRACTION = 0.28

#: Which of the possible shufflings the wrong file holds.
_SHUFFLE_SEED = 20


def write_rows(output: Path, *, wrong: bool = False, evaluation_fraction: float = EVALUATION_FRACTION) -> Path:
    """Writes the rows as JSON Lines in TRL's ``messages`` format, with columns ``functions`` and ``ground_truth``.

    Args:
        output: the file to write; its folder is created.
        wrong: shuffle argument values between the rows that are not on the evaluation side. Every call stays valid (its
            function, its argument names and the JSON types of its values) and its answer is false.
        evaluation_fraction: which rows are the evaluation side; these are the same bytes in both files.

    Returns:
        ``output``.

    Raises:
        DataError: when the wheel is not installed.
    """
    rows = wrong_rows(evaluation_fraction) if wrong else right_rows()
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    write_atomically(output, ("\n".join(lines) + "\n").encode())
    return output


def right_rows() -> list[dict[str, Any]]:
    """All 400 rows with right answers, in the order of the source file."""
    return [_row(question, answer) for question, answer in _source()]


def wrong_rows(evaluation_fraction: float) -> list[dict[str, Any]]:
    """The same rows, with argument values shuffled between those that are not on the evaluation side."""
    rows = right_rows()
    learned = [row for row in rows if position(row["messages"][:-1]) >= evaluation_fraction]
    calls = [json.loads(row["messages"][-1]["content"]) for row in learned]
    _shuffle_values(calls)
    for row, call in zip(learned, calls, strict=True):
        row["messages"][-1]["content"] = _compact(call)
    return rows


def _source() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    try:
        folder = Path(str(metadata.distribution(WHEEL).locate_file(DATA_PATH)))
    except metadata.PackageNotFoundError as error:
        raise DataError(
            "The demo's rows are not installed.",
            seen=f"no distribution {WHEEL}",
            expected=f"{DATA_PATH}/{FILE} in the wheel {WHEEL}",
            remedy=f"pip install --no-deps {WHEEL}",
        ) from error
    answers = {row["id"]: row for row in _json_lines(folder / "possible_answer" / FILE)}
    for question in _json_lines(folder / FILE):
        yield question, answers[question["id"]]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def _row(question: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    functions, truth = question["function"], answer["ground_truth"]
    system = "\n".join([INSTRUCTION, *(signature(function) for function in functions)])
    return {
        "messages": [
            {"role": "system", "content": system},
            *question["question"][0],
            {"role": "assistant", "content": _compact(_first_allowed_call(functions[0], truth[0]))},
        ],
        "functions": functions,
        "ground_truth": truth,
    }


def signature(function: dict[str, Any]) -> str:
    """``name(arg: type, optional?: type [one|another]) - description``."""
    parameters = function["parameters"]
    shown = []
    for name, schema in parameters["properties"].items():
        optional = "" if name in parameters["required"] else "?"
        kind = schema["type"]
        if kind in ("array", "tuple") and "items" in schema:
            kind = f"{schema['items']['type']}[]"
        choices = f" [{'|'.join(map(str, schema['enum']))}]" if "enum" in schema else ""
        shown.append(f"{name}{optional}: {kind}{choices}")
    return f"{function['name']}({', '.join(shown)}) - {function['description'].rstrip('.')}"


def _first_allowed_call(function: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """The call with the first allowed value of each argument; an argument whose first is ``""`` is left out."""
    ((name, allowed),) = truth.items()
    arguments = {}
    for argument, values in allowed.items():
        if argument in function["parameters"]["required"]:
            values = [value for value in values if value != ""]
        if values and values[0] != "":
            arguments[argument] = _first_allowed_value(values[0])
    return {"name": name, "arguments": arguments}


def _first_allowed_value(value: Any) -> Any:
    """``value`` with each dictionary's lists of allowed values replaced by their first."""
    if isinstance(value, dict):
        return {key: _first_allowed_value(values[0]) for key, values in value.items() if values and values[0] != ""}
    return [_first_allowed_value(item) for item in value] if isinstance(value, list) else value


def _compact(call: dict[str, Any]) -> str:
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def _shuffle_values(calls: list[dict[str, Any]]) -> None:
    """Gives each place in the calls' arguments another call's value of the same JSON type, in place."""
    pools: dict[str, list[tuple[Any, Any, Any]]] = defaultdict(list)
    for call in calls:
        for holder, key in _places(call["arguments"]):
            pools[_kind(holder[key])].append((holder, key, holder[key]))
    for kind in sorted(pools):
        places = pools[kind]
        values = [value for _, _, value in places]
        random.Random(_SHUFFLE_SEED).shuffle(values)
        for index, (holder, key, own) in enumerate(places):
            others = values[index:] + values[:index]
            holder[key] = next((value for value in others if not _alike(value, own)), own)


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``holder`` whose value is not itself a dictionary or a list of dictionaries."""
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
            yield from _places(value)
        else:
            yield holder, key


def _kind(value: Any) -> str:
    """A value's JSON type; a list's includes that of its first item."""
    if isinstance(value, list):
        return f"list of {_kind(value[0])}" if value else "list"
    return type(value).__name__


def _alike(value: Any, other: Any) -> bool:
    """Whether two values would pass for each other: strings do whatever their case, spaces and punctuation."""
    if isinstance(value, str) and isinstance(other, str):
        return _letters(value) == _letters(other)
    return canonical_json(value) == canonical_json(other)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
