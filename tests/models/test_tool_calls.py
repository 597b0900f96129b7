"""Scoring a tool call: what counts as a call, and what counts as a right one."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tunegate.models.tool_calls import ground_truth_problem, is_exact, parse_call, process_results

FUNCTIONS = [
    {
        "name": "book",
        "parameters": {
            "type": "dict",
            "properties": {
                "city": {"type": "string"},
                "nights": {"type": "integer"},
                "price": {"type": "float"},
                "wifi": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "guest": {"type": "dict"},
                "legs": {"type": "array", "items": {"type": "dict"}},
                "sizes": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city", "nights"],
        },
    },
    {"name": "cancel", "parameters": {"type": "dict", "properties": {}, "required": []}},
]
TRUTH = [
    {
        "book": {
            "city": ["New York, NY", "NYC"],
            "nights": [3, 4],
            "price": ["", 99.0],
            "wifi": [True, ""],
            "tags": ["", ["sea-view", "Quiet"], ["quiet", "sea view"]],
            "guest": ["", {"name": ["O'Neil"], "age": [40, ""]}],
            "legs": ["", [{"from": ["A"]}, {"from": ["B", "C"]}]],
            "sizes": ["", [1, 2]],
        }
    }
]

#: Arguments, and whether the Berkeley checker calls them right.
CASES = [
    ({"city": "New York, NY", "nights": 3}, True),
    ({"city": "new york ny", "nights": 4}, True),
    ({"city": "NYC", "nights": 3, "price": 99.0, "wifi": True}, True),
    ({"city": "NYC", "nights": 3, "price": 99}, True),
    ({"city": "NYC", "nights": 5}, False),
    ({"city": "NYC", "nights": "3"}, False),
    ({"city": "NYC", "nights": True}, False),
    ({"city": "NYC"}, False),
    ({"nights": 3}, False),
    ({"city": "Boston", "nights": 3}, False),
    ({"city": "NYC", "nights": 3, "price": 98.5}, False),
    ({"city": "NYC", "nights": 3, "price": ""}, False),
    ({"city": "NYC", "nights": 3, "wifi": False}, False),
    ({"city": "NYC", "nights": 3, "wifi": 1}, False),
    ({"city": "NYC", "nights": 3, "colour": "red"}, False),
    ({"city": "NYC", "nights": 3, "tags": ["SEA VIEW", "quiet"]}, True),
    ({"city": "NYC", "nights": 3, "tags": ["quiet"]}, False),
    ({"city": "NYC", "nights": 3, "tags": "quiet"}, False),
    ({"city": "NYC", "nights": 3, "guest": {"name": 'O"Neil', "age": 40}}, True),
    ({"city": "NYC", "nights": 3, "guest": {"name": "o'neil"}}, True),
    ({"city": "NYC", "nights": 3, "guest": {"age": 40}}, False),
    ({"city": "NYC", "nights": 3, "guest": {"name": "O'Neil", "age": 41}}, False),
    ({"city": "NYC", "nights": 3, "guest": {"name": "O'Neil", "job": "x"}}, False),
    ({"city": "NYC", "nights": 3, "legs": [{"from": "a"}, {"from": "C"}]}, True),
    ({"city": "NYC", "nights": 3, "legs": [{"from": "C"}, {"from": "A"}]}, False),
    ({"city": "NYC", "nights": 3, "legs": [{"from": "A"}]}, False),
    ({"city": "NYC", "nights": 3, "sizes": [1, 2]}, True),
    ({"city": "NYC", "nights": 3, "sizes": [2, 1]}, False),
    ({"city": "", "nights": 3}, False),
]


@pytest.mark.parametrize(("arguments", "right"), CASES)
def test_arguments_are_right_only_when_each_is_allowed(arguments, right) -> None:
    assert is_exact({"name": "book", "arguments": arguments}, FUNCTIONS, TRUTH) is right


@pytest.fixture(scope="module")
def berkeley() -> ModuleType:
    """The leaderboard's own checker; its table of hosted models, which needs their clients, is left out."""
    pytest.importorskip("bfcl_eval")
    table = ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"any": SimpleNamespace(underscore_to_dot=False)}
    sys.modules.setdefault(table.__name__, table)
    return importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")


def _judged(berkeley: ModuleType, function: dict, arguments: dict, truth: list) -> bool:
    from bfcl_eval.constants.enums import Language

    call = [{function["name"]: arguments}]
    return berkeley.ast_checker([function], call, truth, Language.PYTHON, "simple_python", "any")["valid"]


@pytest.mark.parametrize(("arguments", "right"), CASES)
def test_the_leaderboards_own_checker_agrees(berkeley, arguments, right) -> None:
    assert _judged(berkeley, FUNCTIONS[0], arguments, TRUTH) is right


def test_every_row_of_the_leaderboard_is_judged_as_its_checker_judges_it(berkeley) -> None:
    """Each row's own answer, one argument spoiled, and one left out."""
    import bfcl_eval

    data = Path(bfcl_eval.__file__).parent / "data"
    rows = [json.loads(line) for line in (data / "BFCL_v4_simple_python.json").read_text().splitlines()]
    truths = (data / "possible_answer" / "BFCL_v4_simple_python.json").read_text().splitlines()
    wrong, judged = [], 0
    for row, truth in zip(rows, (json.loads(line)["ground_truth"] for line in truths), strict=True):
        function = row["function"][0]
        assert ground_truth_problem({"functions": row["function"], "ground_truth": truth}) == ""
        for arguments in _variants(next(iter(truth[0].values()))):
            judged += 1
            ours = is_exact({"name": function["name"], "arguments": arguments}, [function], truth)
            if ours != _judged(berkeley, function, arguments, truth):
                wrong.append((row["id"], arguments))
    assert judged > 1500 and wrong == []


def _variants(allowed: dict) -> list[dict]:
    def plain(option):
        if isinstance(option, dict):
            return {key: plain(options[0]) for key, options in option.items()}
        return [plain(item) for item in option] if isinstance(option, list) else option

    given = {key: [option for option in options if option != ""] for key, options in allowed.items()}
    right = {key: plain(options[0]) for key, options in given.items() if options}
    spoiled = [{**right, key: f"{value} spoiled"} for key, value in right.items() if isinstance(value, str)]
    spoiled += [{**right, key: value + 1} for key, value in right.items() if type(value) in (int, float)]
    left_out = [{k: v for k, v in right.items() if k != key} for key in right]
    last = {key: plain(options[-1]) for key, options in given.items() if options}
    return [right, last, *spoiled, *left_out, {**right, "unheard_of": 1}]


def test_numbers_are_compared_as_json_has_them() -> None:
    """The one place where we are milder than the leaderboard: 3.0 is 3."""
    assert is_exact({"name": "book", "arguments": {"city": "NYC", "nights": 3.0}}, FUNCTIONS, TRUTH)


def test_the_wrong_function_is_valid_and_not_exact() -> None:
    doc = {"fields": json.dumps({"functions": FUNCTIONS, "ground_truth": TRUTH})}
    assert process_results(doc, ['{"name": "cancel", "arguments": {}}']) == {"valid": 1.0, "exact": 0.0}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I would call book.",
        '{"name": "book", "arguments": {"city": "NYC", "nights": 3}',
        '```json\n{"name": "book", "arguments": {"city": "NYC", "nights": 3}}\n```',
        'Sure: {"name": "book", "arguments": {"city": "NYC", "nights": 3}}',
        '{"name": "fly", "arguments": {}}',
        '{"name": ["book"], "arguments": {}}',
        '{"name": "book", "arguments": []}',
        '{"name": "book"}',
        '{"name": "book", "arguments": {"price": NaN}}',
        "[" * 100_000,
        "9" * 5000,
        "null",
    ],
)
def test_an_answer_that_is_no_call_scores_zero_and_is_no_error(answer) -> None:
    doc = {"fields": json.dumps({"functions": FUNCTIONS, "ground_truth": TRUTH})}
    assert process_results(doc, [answer]) == {"valid": 0.0, "exact": 0.0}


def test_white_space_around_a_call_is_allowed() -> None:
    assert parse_call('\n {"name": "cancel", "arguments": {}} \n', known=["cancel"]) is not None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "functions"),
        ({"functions": FUNCTIONS}, "ground_truth"),
        ({"functions": FUNCTIONS, "ground_truth": TRUTH * 2}, "2 calls"),
        ({"functions": FUNCTIONS, "ground_truth": [{"fly": {}}]}, "not one of its functions"),
        ({"functions": FUNCTIONS, "ground_truth": [{"book": {"city": "NYC"}}]}, "not lists"),
        ({"functions": FUNCTIONS, "ground_truth": [{"book": {"guest": [{"name": "x"}]}}]}, "not lists"),
        ({"functions": [{"name": "f", "parameters": None}], "ground_truth": [{"f": {}}]}, "'parameters' of 'f'"),
        ({"functions": [{"name": "f", "parameters": []}], "ground_truth": [{"f": {}}]}, "'parameters' of 'f'"),
        ({"functions": [{"name": "f", "parameters": {"required": None}}], "ground_truth": [{"f": {}}]}, "'required'"),
        ({"functions": [{"name": "f"}], "ground_truth": [{"f": {}}]}, ""),
        ({"functions": FUNCTIONS, "ground_truth": TRUTH}, ""),
    ],
)
def test_a_row_that_cannot_be_scored_is_told_before_a_model_is_loaded(fields, problem) -> None:
    found = ground_truth_problem(fields)
    assert problem in found and bool(problem) == bool(found)
