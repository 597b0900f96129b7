"""The pipeline's own components: what they say when a run is refused, and how settings travel through KFP."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunegate.contracts.approval_minimum import Minimum
from tunegate.contracts.errors import ERROR_LINE, GateRefused, error_from_line
from tunegate.contracts.verdict import Check, Verdict
from tunegate.preflight.lint import Context, lint
from tunegate.registry.claims import begin, end
from tunegate.registry.minimum import write_minimum
from tunegate.storage.open import open_storage
from tunegate_pipelines.form import FORM, SECTIONS
from tunegate_pipelines.launch import launch_check, launch_refused, launch_summarize, refusal
from tunegate_pipelines.recipe import resolve

CHECKS = (
    Check("tool_call.exact: merged against base", "FAIL", "0.05 better, 0.25 was asked", rows=("aa", "bb")),
    Check("tool_call.exact: quantized against merged", "INCONCLUSIVE", "too few rows", rows_needed=140),
    Check("overlap", "PASS", "none"),
)
VERDICT = Verdict("FAIL", "1 of 3 checks fails.", CHECKS, {}, "digest")
POLICY = {
    "checks": [
        {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1},
    ]
}
RECIPE = {"gate": {"policy": POLICY}, "quantize": {"num_calibration_samples": 8}}
UNASKED = {**RECIPE, "approve": {"required": False}}


@dataclass
class FakeArtifact:
    """What kfp hands to a component, as far as launchers use it."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def page(tmp_path: Path) -> FakeArtifact:
    return FakeArtifact(str(tmp_path / "page"))


def test_refusal_names_metric_rows_and_what_would_decide() -> None:
    said = str(refusal(VERDICT))
    assert "tool_call.exact: merged against base: 0.05 better, 0.25 was asked (rows aa, bb)" in said
    assert "about 140 rows would decide it" in said
    assert "overlap" not in said


def test_refused_task_fails_with_exit_code_3_and_one_line_for_the_runner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VERDICT.write(tmp_path)
    with pytest.raises(SystemExit) as caught:
        launch_refused(
            {"webhook_url_env": "HOOK"}, FakeArtifact(str(tmp_path)), alias="tools", registry="/data/r", claim={}
        )
    assert caught.value.code == 3
    said = capsys.readouterr()
    line = next(line for line in said.err.splitlines() if line.startswith(ERROR_LINE))
    assert isinstance(error_from_line(line), GateRefused)
    assert "HOOK holds no http(s) address" in said.out  # it would have been told, and its silence changes nothing


def test_retraining_that_the_gate_refused_is_not_made_again(tmp_path: Path) -> None:
    for name in ("verdict", "registry"):
        (tmp_path / name).mkdir()
    VERDICT.write(tmp_path / "verdict")
    storage = open_storage(str(tmp_path / "registry"))
    claim = begin(storage, "tools", made_from="1" * 64, holder="run-1", seconds=60).claim
    assert claim is not None
    given = {"alias": "tools", "registry": storage.uri, "claim": claim.to_json()}
    with pytest.raises(SystemExit):
        launch_refused({}, FakeArtifact(str(tmp_path / "verdict")), **given)
    end(storage, "tools", holder="run-1")
    again = begin(storage, "tools", made_from="1" * 64, holder="run-2", seconds=60)
    assert again.decision == "refused" and "1 of 3 checks fails." in again.reason


def test_check_gives_every_step_its_settings_without_nulls(page: FakeArtifact) -> None:
    """KFP's parameters know no null: one would break the run between two tasks."""
    told = launch_check({"r": 8.0}, RECIPE, base_model="", dataset="", registry="/data/registry", page=page)
    assert told._fields == (*SECTIONS, "approval", "quantizer", "made_by")
    assert told.train["r"] == 8
    assert None not in [value for settings in told[: len(SECTIONS)] for value in settings.values()]
    assert "lora_alpha" in Path(page.path).read_text("utf-8")


def test_check_refuses_hopeless_settings_and_shows_them(page: FakeArtifact, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch_check({"learning_rate": 0.1}, RECIPE, base_model="", dataset="", registry="/data/registry", page=page)
    assert caught.value.code == 2
    assert "learning-rate" in Path(page.path).read_text("utf-8")


@pytest.mark.parametrize(
    ("alias", "registry", "checkpoint_uri"),
    [
        ("../champion", "/data/registry", ""),
        ("champion", "s3://bucket/models", ""),
        ("champion", "gs://no-such-bucket/models", ""),
        ("champion", "/data/registry", "gs://no-such-bucket/checkpoints"),
    ],
)
@pytest.mark.usefixtures("gcs_bucket")
def test_alias_registry_and_bucket_that_cannot_be_used_are_refused_before_training(
    page: FakeArtifact, alias: str, registry: str, checkpoint_uri: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch_check(
            {"alias": alias},
            RECIPE,
            base_model="",
            dataset="",
            registry=registry,
            checkpoint_uri=checkpoint_uri,
            page=page,
        )
    assert caught.value.code == 2
    assert not Path(page.path).exists()


LEGACY = {**UNASKED, "quantize": {**RECIPE["quantize"], "backend": "autoawq", "legacy_python": "/nowhere/python"}}


def test_a_backend_without_its_environment_is_refused_on_a_plain_machine_before_training(
    page: FakeArtifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEGATE_IMAGE", raising=False)
    recipe = LEGACY
    with pytest.raises(SystemExit) as caught:
        launch_check({"scheme": "W4A16_ASYM"}, recipe, base_model="", dataset="", registry="/data/registry", page=page)
    assert caught.value.code == 2 and not Path(page.path).exists()
    said = capsys.readouterr().err
    assert "no environment to run autoawq" in said and "the image quantize_legacy holds it" in said


def test_on_a_cluster_a_backend_of_an_ended_project_is_given_the_image_that_holds_it(
    page: FakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task runs in the image of control, which holds no AutoAWQ: it must not look for it there."""
    monkeypatch.setenv("TUNEGATE_IMAGE", "registry.example.com/tunegate/control@sha256:1")
    images = {"llmcompressor": "r/tunegate/quantize@sha256:2", "autoawq": "r/tunegate/quantize_legacy@sha256:3"}
    place = {"base_model": "", "dataset": "", "registry": "/data/registry", "quantizers": images, "page": page}
    assert launch_check({"scheme": "W4A16_ASYM"}, LEGACY, **place).quantizer == images["autoawq"]
    assert launch_check({"scheme": "W4A16_ASYM"}, UNASKED, **place).quantizer == images["llmcompressor"]


def test_buckets_that_answer_pass_the_check(page: FakeArtifact, gcs_bucket: str) -> None:
    places = {"registry": f"{gcs_bucket}/models", "checkpoint_uri": f"{gcs_bucket}/checkpoints"}
    told = launch_check({}, UNASKED, base_model="", dataset="", **places, page=page)
    assert (told.train["method"], told.approval) == ("qlora", "waived")


def test_approval_is_required_by_default_and_a_requester_whom_nobody_knows_is_refused_before_anything_is_spent(
    page: FakeArtifact, gcs_bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch_check({}, RECIPE, base_model="", dataset="", registry=gcs_bucket, page=page)
    assert caught.value.code == 2
    assert "Nobody knows who asks" in capsys.readouterr().err
    known = {"base_model": "", "dataset": "", "registry": "/data/registry", "page": page}
    assert launch_check({}, RECIPE, **known).approval == "required"  # the user of this machine
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SystemExit):
        launch_check({}, RECIPE, **known)


def test_a_recipe_that_is_looser_than_the_registry_is_refused_before_anything_is_spent(
    page: FakeArtifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_minimum(open_storage(str(tmp_path)), Minimum(approvers=("local:bob",)))
    place = {"base_model": "", "dataset": "", "registry": str(tmp_path), "page": page}
    others = {"required": True, "approvers": ["local:eve"]}
    for approve, rule in (({"required": False}, "approve.required"), (others, "approve.approvers")):
        with pytest.raises(SystemExit) as caught:
            launch_check({}, {**RECIPE, "approve": approve}, **place)
        assert caught.value.code == 2
        assert f"{rule}: " in capsys.readouterr().err
    held = {**RECIPE, "approve": {"approvers": ["local:bob"]}}
    assert launch_check({}, held, **place).approval == "required"


def test_defaults_pass_their_own_lint() -> None:
    assert lint(Context(resolve({}, {"gate": {"policy": POLICY}}))).findings == ()


def test_summary_shows_what_failed(page: FakeArtifact) -> None:
    status = SimpleNamespace(state="FAILED", pipeline_task_name="tune-and-judge", error_message="Task <train> failed")
    launch_summarize(status, {"alias": "tools"}, page=page)
    written = Path(page.path).read_text("utf-8")
    assert "FAILED" in written
    assert "task that failed" in written
    assert "tune-and-judge" in written
    assert "Task &lt;train&gt; failed" in written


def test_check_component_takes_the_whole_run_form() -> None:
    from tunegate_pipelines.tasks import check

    addresses = {"base_model", "dataset", "registry", "checkpoint_uri"}
    assert {*check.component_spec.inputs} == {*FORM, *addresses, "recipe", "quantizers"}


def test_check_looks_into_the_base_that_it_is_given(page: FakeArtifact, tmp_path: Path) -> None:
    """On a cluster nobody ran the lint before."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}', "utf-8")
    with pytest.raises(SystemExit) as caught:
        launch_check({}, RECIPE, base_model=str(tmp_path), dataset="", registry="/data/registry", page=page)
    assert caught.value.code == 2
    assert "max-length" in Path(page.path).read_text("utf-8")
