"""Scores a tool call against the answers that are allowed: those that are evaluated, and those that a server gives.

The ground truth has the form of the Berkeley Function Calling Leaderboard, and is judged as its AST checker judges it
(``bfcl_eval/eval_checker/ast_eval/ast_checker.py``): each argument has a list of allowed values, and an empty string in
that list means that the argument may be left out. Strings are compared without case, spaces and the characters
``, . / - _ * ^``; a required argument must be there; an argument that is not expected makes the call wrong.
It differs in two places, both because JSON has one kind of number and any depth: 5 equals 5.0 for every parameter (that
checker refuses 5.0 for an integer), and strings in nested lists are compared in the same way as those outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_IGNORED_IN_STRINGS = re.compile(r"[ ,./\-_*^]")
_LEFT_OUT = ""

#: The task on the data set's rows whose answers are scored so.
TOOL_CALL = "tool_call"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores one row as lm-evaluation-harness asks for it: ``valid`` and ``exact``, each 0 or 1."""
    fields = json.loads(doc["fields"])
    call = parse_call(results[0], known=[function["name"] for function in fields["functions"]])
    exact = call is not None and is_exact(call, fields["functions"], fields["ground_truth"])
    return {"valid": float(call is not None), "exact": float(exact)}


def parse_call(answer: str, *, known: Sequence[str]) -> dict[str, Any] | None:
    """The call that an answer is, or None.

    The whole answer must be one JSON object with ``name``, one of ``known``, and ``arguments``, an object. Words or a
    code fence around it make it invalid: what executes calls would have to guess them away.
    """
    try:
        call = json.loads(answer.strip(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        return None
    return call if isinstance(call.get("name"), str) and call["name"] in known else None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def is_exact(
    call: Mapping[str, Any], functions: Sequence[Mapping[str, Any]], ground_truth: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the call is of the right function and each of its arguments has an allowed value."""
    ((name, allowed),) = ground_truth[0].items()
    if call["name"] != name:
        return False
    (function,) = (f for f in functions if f["name"] == name)
    required = function.get("parameters", {}).get("required", [])
    return all(key in call["arguments"] for key in required) and _arguments_match(call["arguments"], allowed)


def _arguments_match(values: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> bool:
    if values.keys() - allowed.keys():
        return False
    return all(
        _value_matches(values[key], options) if key in values else _LEFT_OUT in options
        for key, options in allowed.items()
    )


def _value_matches(value: Any, options: Sequence[Any]) -> bool:
    """Whether ``value`` is one of ``options``; the mark for "may be left out" is a value of strings only."""
    values = [option for option in options if option != _LEFT_OUT]
    if value == _LEFT_OUT and _LEFT_OUT in options:
        return not values or any(isinstance(option, str) for option in values)
    return any(_equal(value, option) for option in values)


def _equal(value: Any, option: Any) -> bool:
    if isinstance(option, dict):
        return isinstance(value, dict) and _arguments_match(value, option)
    if isinstance(option, list):
        return isinstance(value, list) and len(value) == len(option) and all(map(_equal, value, option))
    if isinstance(option, str):
        return isinstance(value, str) and _standard(value) == _standard(option)
    if isinstance(option, bool) or isinstance(value, bool) or option is None:
        return value is option
    return isinstance(value, int | float) and value == option


def _standard(text: str) -> str:
    return _IGNORED_IN_STRINGS.sub("", text).lower().replace("'", '"')


def ground_truth_problem(fields: Mapping[str, Any]) -> str:
    """What keeps a row from being scored, empty when nothing does. Asked before a model is loaded."""
    functions, truth = fields.get("functions"), fields.get("ground_truth")
    if not isinstance(functions, list) or not functions or not all(_is_function(f) for f in functions):
        return "no 'functions' (a list of objects with 'name' and 'parameters')"
    if odd := [str(f["name"]) for f in functions if not _has_usable_parameters(f)]:
        return f"'parameters' of {odd[0]!r} is no object, or its 'required' no list of names"
    if not isinstance(truth, list) or not truth:
        return "no 'ground_truth'"
    if len(truth) != 1 or not isinstance(truth[0], dict) or len(truth[0]) != 1:
        return f"'ground_truth' has {len(truth)} calls; exactly one call a row can be scored"
    ((name, allowed),) = truth[0].items()
    if [f["name"] for f in functions].count(name) != 1:
        return f"'ground_truth' calls {name!r}, which is not one of its functions"
    return "" if _is_allowed(allowed) else f"the values allowed for {name!r} are not lists"


def _is_function(function: Any) -> bool:
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _has_usable_parameters(function: Mapping[str, Any]) -> bool:
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict):
        return False
    required = parameters.get("required", [])
    return isinstance(required, list) and all(isinstance(name, str) for name in required)


def _is_allowed(allowed: Any) -> bool:
    """Whether every argument, also of objects inside, has a list of allowed values."""
    if not isinstance(allowed, dict):
        return False
    return all(isinstance(options, list) and all(map(_is_option, options)) for options in allowed.values())


def _is_option(option: Any) -> bool:
    if isinstance(option, dict):
        return _is_allowed(option)
    return all(map(_is_option, option)) if isinstance(option, list) else True
