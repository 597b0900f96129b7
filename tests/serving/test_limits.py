"""The limits of a policy, as a deployment reads them from the version that they let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, SettingsError
from tunegate.gate.policy import parse_policy
from tunegate.serving.limits import AnswerLimits, Figures, held, limits_of_policy

CHECK = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": 0.1}


def written(folder: Path, **policy: Any) -> Path:
    """``policy.json`` as the gate writes it."""
    path = folder / "policy.json"
    path.write_text(json.dumps(parse_policy({"checks": [CHECK], **policy}).to_json()), "utf-8")
    return path


def test_a_deployment_holds_to_the_limits_of_the_policy_that_the_version_passed(tmp_path: Path) -> None:
    path = written(tmp_path, serving={"min_agreement": 0.9, "max_logprob_difference": 0.5, "min_same_answers": 0.5})
    assert limits_of_policy(path) == AnswerLimits(min_agreement=0.9, max_logprob_difference=0.5)
    assert limits_of_policy(written(tmp_path)) == AnswerLimits()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"serving": 1}'])
def test_a_policy_that_cannot_be_read_lets_nothing_through(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ArtifactError, match="cannot be read as a policy"):
        limits_of_policy(path)
    path.write_text('{"serving": {"min_agreement": 7}}', "utf-8")
    with pytest.raises(SettingsError, match="out of range"):
        limits_of_policy(path)


def test_what_could_not_be_measured_keeps_no_limit() -> None:
    limits = AnswerLimits(max_mean_logprob_difference=1.0, max_logprob_difference=1.0)
    for found in (Figures(None, None, None, None), Figures(None, None, None, 0.1)):
        checks = held(limits, found)
        assert len(checks) == 4
        assert not any(check.holds for check in checks)
    assert not held(AnswerLimits(), Figures(1.0, 0.1, 0.1, 0.0))[-1].holds  # no noise: no multiple of it
