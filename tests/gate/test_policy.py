"""A policy that is not understood, or that asks for nothing that matters, is refused before anything is judged."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunegate.contracts.errors import PolicyError
from tunegate.gate.policy import parse_policy

COMPARISON = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.1}


def test_defaults_are_strict_and_equal_policies_have_equal_digests() -> None:
    policy = parse_policy({"checks": [COMPARISON]})
    assert (policy.max_overlap_rows.exact, policy.max_overlap_rows.near, policy.confidence) == (0, 0, 0.95)
    spelt = {"confidence": 0.95, "max_overlap_rows": {"near": 0.0}, "checks": [{**COMPARISON, "direction": "higher"}]}
    assert parse_policy(spelt).digest == policy.digest
    assert parse_policy({"checks": [{**COMPARISON, "margin": 0.2}]}).digest != policy.digest


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "no checks"),
        ({"checks": []}, "no checks"),
        ({"checks": [COMPARISON], "confidance": 0.9}, "did you mean 'confidence'"),
        ({"checks": [{**COMPARISON, "margn": 1}]}, "did you mean 'margin'"),
        ({"checks": [COMPARISON], "max_overlap_rows": {"nearly": 1}}, "did you mean 'near'"),
        ({"checks": [COMPARISON], "confidence": 95}, "out of range"),
        ({"checks": ["tool_call"]}, "not a mapping"),
        ({"checks": [{**COMPARISON, "candidate": "quantised"}]}, "did you mean 'quantized'"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest_name(document: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        parse_policy(document)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"margin": None}, "asks for nothing"),
        ({"floor": 0.5}, "margin and floor"),
        ({"reference": ""}, "needs a reference"),
        ({"reference": "quantized"}, "compared with itself"),
        ({"margin": None, "floor": 0.5}, "takes no reference"),
        ({"margin": None, "reference": None, "floor": 0.5, "direction": "lower"}, "takes no direction"),
        ({"margin": None, "reference": None, "ceiling": 0.5, "direction": "lower"}, "takes no direction"),
        ({"margin": 0}, "cannot be shown"),
        ({"margin": -0.1}, "out of range"),
        ({"score_range": [1, 0]}, "is not \\[lowest, highest\\]"),
        ({"max_row_loss": 1.0}, "with a score_range"),
    ],
)
def test_a_check_that_cannot_be_judged_is_refused(change: dict[str, Any], says: str) -> None:
    check = {key: value for key, value in {**COMPARISON, **change}.items() if value is not None}
    with pytest.raises(PolicyError, match=says):
        parse_policy({"checks": [check]})


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"margin": 5}, "did you mean margin: 0.05"),
        ({"margin": 1}, "did you mean margin: 0.01"),
        ({"margin": 20, "score_range": [0, 10]}, r"did you mean margin: 2\?"),
        ({"margin": 10, "score_range": [-5, 5]}, r"did you mean margin: 1\?"),
        ({"margin": None, "required_gain": 25}, "did you mean required_gain: 0.25"),
        ({"margin": 500}, "^(?!.*did you mean).*state the score_range of m"),
    ],
)
def test_a_margin_that_no_model_could_miss_is_refused_with_what_was_likely_meant(
    change: dict[str, Any], remedy: str
) -> None:
    """``margin: 5``, meant as percent, let a model through that got every row wrong."""
    check = {key: value for key, value in {**COMPARISON, **change}.items() if value is not None}
    with pytest.raises(PolicyError) as caught:
        parse_policy({"checks": [check]})
    assert re.search(remedy, caught.value.remedy)


@pytest.mark.parametrize("change", [{"margin": 0.99}, {"margin": 5, "score_range": [0, 10]}])
def test_a_margin_below_the_width_of_the_scores_is_taken(change: dict[str, Any]) -> None:
    assert parse_policy({"checks": [{**COMPARISON, **change}]}).checks[0].limit == change["margin"]


def test_a_policy_that_never_compares_what_is_served_is_refused() -> None:
    merged = {**COMPARISON, "candidate": "merged", "reference": "base"}
    floor = {"task": "t", "metric": "m", "candidate": "quantized", "floor": 0.5}
    with pytest.raises(PolicyError, match="no comparison of the quantized model"):
        parse_policy({"checks": [merged, floor]})


def test_the_same_check_twice_is_refused() -> None:
    with pytest.raises(PolicyError, match="more than once"):
        parse_policy({"checks": [COMPARISON, {**COMPARISON, "margin": 0.2}]})
