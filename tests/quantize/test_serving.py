"""The scheme that quantize makes: what the serving target has, and nothing that it has not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.manifest import verify
from tunegate.quantize.serving import decide
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run

SMOLLM2 = {"q_proj": 576, "down_proj": 1536}


def test_without_a_target_the_scheme_is_made_as_it_was_asked_for() -> None:
    settings = QuantizeSettings(scheme="W8A8")
    assert decide(settings, SMOLLM2) == (settings, None)


def test_auto_without_a_target_is_refused_with_what_to_name() -> None:
    with pytest.raises(SettingsError, match="no serving target") as caught:
        decide(QuantizeSettings(scheme="auto"), SMOLLM2)
    assert "vllm-cuda-sm90" in caught.value.expected


def test_auto_becomes_the_scheme_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    made, fit = decide(QuantizeSettings(scheme="auto", serving_target="vllm-cuda-sm80"), SMOLLM2)
    assert fit is not None and made.scheme == fit.scheme == "W8A8"
    assert "auto on vllm-cuda-sm80: W8A8" in capsys.readouterr().out


def test_what_answers_otherwise_than_it_is_evaluated_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    made, fit = decide(QuantizeSettings(scheme="FP8", serving_target="vllm-cuda-sm90"), SMOLLM2)
    assert made.scheme == "FP8" and fit is not None and fit.served == "otherwise"
    assert "answers otherwise" in capsys.readouterr().out


@pytest.mark.parametrize(("backend", "scheme"), [("autoawq", "W4A16_ASYM"), ("auto_gptq", "W4A16")])
@pytest.mark.parametrize("target", ["vllm-cuda-sm90", "vllm-cpu-avx2"])
def test_nothing_is_promised_of_a_format_that_was_not_measured(
    backend: str, scheme: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = QuantizeSettings(backend=backend, scheme=scheme, serving_target=target)
    made, fit = decide(settings, {"q_proj": 256})
    assert made == settings and fit is not None and fit.served == "not known"
    assert f"not measured for {backend}'s format" in fit.reason and fit.reason in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"group_size": 64}, {"algorithm": "awq"}, {"n_grid": 5}, {"dampening_frac": 0.1}])
def test_a_setting_that_no_scheme_reads_yet_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="while the scheme is auto"):
        QuantizeSettings(scheme="auto", serving_target="vllm-cuda-sm90", **changes)  # type: ignore[arg-type]


def test_a_scheme_without_a_kernel_ends_before_the_model_is_loaded(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunegate.models.load.load_causal_lm", lambda *_, **__: pytest.fail("the model was loaded"))
    settings = QuantizeSettings(scheme="W4A16", serving_target="vllm-cpu-avx2", num_calibration_samples=8)
    with pytest.raises(SettingsError, match="cannot be served on vllm-cpu-avx2") as caught:
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_the_artifact_and_its_page_say_what_auto_took_and_why(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = QuantizeSettings(scheme="auto", serving_target="vllm-cpu-avx2")
    run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    result = json.loads((tmp_path / "out" / "quantize.json").read_text("utf-8"))
    assert result["scheme"] == "FP8_DYNAMIC"
    serving = result["serving"]
    assert (serving["target"], serving["served"]) == ("vllm-cpu-avx2", "as evaluated")
    assert (serving["picked_by"], verify(tmp_path / "out").settings["scheme"]) == ("auto", "auto")
    page = re.sub(r"\s+", " ", (tmp_path / "out" / "page.html").read_text("utf-8"))
    assert "Where it is served" in page and "nothing else is served there as it was evaluated" in page
