"""`tunegate schedule`: KFP has the recurring runs that the file has, whatever was there; others are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate_pipelines import kfp_server
from tunegate_pipelines.resources import REQUESTS
from tunegate_pipelines.retrain import LEASE_SECONDS

NIGHTLY: dict[str, Any] = {"name": "nightly", "recipe": "recipe.yaml", "cron": "0 0 2 * * *", "model": "llama-3-8b"}
HOURLY: dict[str, Any] = {"name": "hourly", "recipe": "recipe.yaml", "interval_seconds": 3600, "set": ["seed=7"]}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_server, "WAITS_SECONDS", (0.0,))


@pytest.fixture
def schedule(home: Path, cluster: Any, kfp: Any) -> Any:
    """Writes a schedule file and reconciles it."""
    cluster(service_account="runner")

    def run(*schedules: dict[str, Any], owner: str = "team-a", options: tuple[str, ...] = ()) -> Any:
        (home / "schedules.yaml").write_text(yaml.safe_dump({"owner": owner, "schedules": list(schedules)}), "utf-8")
        command = ["schedule", str(home / "schedules.yaml"), "--cluster", str(home / "cluster.yaml"), "--json"]
        return CliRunner().invoke(app, [*command, *options])

    return run


def actions(result: Any) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return {row["name"]: row["action"] for row in json.loads(result.stdout)}


def changing(kfp: Any) -> list[str]:
    """What was asked of KFP that changes it."""
    words = ("create", "upload", "delete", "enable", "disable")
    return [one.operation for one in kfp.asked if any(word in one.operation for word in words)]


def test_recurring_run_is_created_with_all_that_the_file_says(schedule: Any, kfp: Any) -> None:
    times = {"start": "2026-12-01T00:00:00Z", "end": "2027-12-01T00:00:00Z"}
    extra = {"max_concurrency": 2, "catch_up": True, "lease_seconds": 2_000_000}
    assert actions(schedule({**NIGHTLY, **times, **extra}, HOURLY)) == {"nightly": "create", "hourly": "create"}
    nightly, hourly = kfp.recurring.values()
    assert nightly["trigger"] == {
        "cron_schedule": {"cron": "0 0 2 * * *", "start_time": times["start"], "end_time": times["end"]}
    }
    assert hourly["trigger"] == {"periodic_schedule": {"interval_second": 3600}}
    assert [int(one["max_concurrency"]) for one in (nightly, hourly)] == [2, 1]
    assert [one["no_catchup"] for one in (nightly, hourly)] == [False, True]
    assert [one["mode"] for one in (nightly, hourly)] == ["ENABLE", "ENABLE"]
    assert nightly["service_account"] == "runner"
    assert nightly["runtime_config"]["parameters"]["lease_seconds"] == 2_000_000
    assert hourly["runtime_config"]["parameters"]["lease_seconds"] == LEASE_SECONDS
    assert hourly["runtime_config"]["parameters"]["seed"] == 7
    version = kfp.versions[nightly["pipeline_version_reference"]["pipeline_version_id"]]
    assert kfp.pipelines[version["pipeline_id"]]["display_name"] == "tunegate-retrain"


def test_lease_that_runs_out_while_a_step_may_go_on_is_refused(schedule: Any, kfp: Any) -> None:
    """Training may take a week: with a lease of a day the next night's run would overtake it, each night anew."""
    result = schedule({**NIGHTLY, "lease_seconds": 86400})
    assert result.exit_code == 2
    assert f"at least {LEASE_SECONDS} s" in result.stderr and kfp.recurring == {}
    assert REQUESTS["train"].timeout_seconds < LEASE_SECONDS
    result = schedule({**NIGHTLY, "pipeline": "finetune", "lease_seconds": 3_000_000})
    assert result.exit_code == 2 and "nothing reads" in result.stderr


def test_same_file_again_changes_nothing(schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY, HOURLY)
    before = len(changing(kfp))
    assert actions(schedule(NIGHTLY, HOURLY)) == {"nightly": "keep", "hourly": "keep"}
    assert len(changing(kfp)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "0 0 3 * * *"},
        {"set": ["learning_rate=1e-4"]},
        {"max_concurrency": 3},
        {"catch_up": True},
        {"pipeline": "finetune"},
        {"lease_seconds": 3_000_000},
        {"end": "2027-01-01T00:00:00+01:00"},
    ],
    ids=str,
)
def test_what_changed_is_made_anew_before_the_old_one_goes(change: dict[str, Any], schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY)
    (old,) = kfp.recurring
    result = schedule({**NIGHTLY, **change})
    assert actions(result) == {"nightly": "change"}
    (new,) = kfp.recurring
    assert new != old
    assert json.loads(result.stdout)[0]["removed"] == [old]
    asked = [one.operation.rpartition("_service_")[2] for one in kfp.asked if "recurring" in one.operation]
    assert asked[-2:] == ["create_recurring_run", "delete_recurring_run"]


def test_cluster_that_changed_changes_its_recurring_runs(schedule: Any, kfp: Any, cluster: Any) -> None:
    schedule(NIGHTLY)
    cluster(service_account="runner", shared_memory="8Gi")
    assert actions(schedule(NIGHTLY)) == {"nightly": "change"}


def test_what_the_file_no_longer_names_is_removed_and_others_are_left_alone(schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY, HOURLY)
    schedule(NIGHTLY, owner="team-b")
    by_hand = {"recurring_run_id": "by-hand", "display_name": "hourly", "experiment_id": "x", "status": "ENABLED"}
    kfp.recurring["by-hand"] = by_hand
    assert actions(schedule(NIGHTLY)) == {"nightly": "keep", "hourly": "remove"}
    left = sorted(str(one.get("description", "by hand"))[:33] for one in kfp.recurring.values())
    assert left == ["by hand", "tunegate schedule; owner team-a; ", "tunegate schedule; owner team-b; "]


def test_enabled_is_changed_in_place_and_somebodys_click_in_the_ui_is_undone(schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY)
    (only,) = kfp.recurring
    assert actions(schedule({**NIGHTLY, "enabled": False})) == {"nightly": "disable"}
    assert kfp.recurring[only]["status"] == "DISABLED"
    assert actions(schedule({**NIGHTLY, "enabled": False})) == {"nightly": "keep"}
    assert actions(schedule(NIGHTLY)) == {"nightly": "enable"}
    assert list(kfp.recurring) == [only]


def test_disabled_one_is_created_disabled(schedule: Any, kfp: Any) -> None:
    schedule({**NIGHTLY, "enabled": False})
    assert [one["status"] for one in kfp.recurring.values()] == ["DISABLED"]


def test_change_that_was_cut_off_is_finished_by_the_next_one(schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY)
    kfp.fail("recurring_run_service_delete_recurring_run", 500, "gone away")
    assert schedule({**NIGHTLY, "cron": "0 0 3 * * *"}).exit_code == 1
    assert len(kfp.recurring) == 2  # the new one starts; the old one was not removed
    assert actions(schedule({**NIGHTLY, "cron": "0 0 3 * * *"})) == {"nightly": "keep"}
    (left,) = kfp.recurring.values()
    assert left["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"


def test_dry_run_says_it_and_changes_nothing(schedule: Any, kfp: Any) -> None:
    assert actions(schedule(NIGHTLY, options=("--dry-run",))) == {"nightly": "create"}
    assert changing(kfp) == []


def test_all_pages_are_read(schedule: Any, kfp: Any) -> None:
    kfp.page_size = 1
    schedule(NIGHTLY, HOURLY)
    assert actions(schedule(NIGHTLY, HOURLY)) == {"nightly": "keep", "hourly": "keep"}


def test_server_that_refuses_leaves_what_was_there(schedule: Any, kfp: Any) -> None:
    schedule(NIGHTLY)
    before = dict(kfp.recurring)
    kfp.fail("recurring_run_service_create_recurring_run", 403, "not in this namespace")
    result = schedule({**NIGHTLY, "max_concurrency": 2})
    assert result.exit_code == 2
    assert "not in this namespace" in result.stderr
    assert kfp.recurring == before


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ([{**NIGHTLY, "cron": "0 2 * * *"}], 'cron: "0 0 2 * * *"'),
        ([{**NIGHTLY, "cron": "0 0 2 * * $(x)"}], "six fields"),
        ([{**NIGHTLY, "interval_seconds": 60}], "does not say when"),
        ([{"name": "a", "recipe": "recipe.yaml"}], "does not say when"),
        ([NIGHTLY, NIGHTLY], "stands twice"),
        ([{**NIGHTLY, "max_concurrency": 11}], "out of range"),
        ([{**NIGHTLY, "start": "tomorrow"}], "no time"),
        ([{**NIGHTLY, "start": "2026-12-01T00:00:00"}], "no time"),
        ([{**NIGHTLY, "pipeline": "approve"}], "cannot be submitted"),
        ([{**NIGHTLY, "set": ["base_model=org/name@main"]}], "names 'main', which is no commit"),
        ([{**NIGHTLY, "corn": "x"}], "did you mean 'cron'"),
        ([{**NIGHTLY, "recipe": "absent.yaml"}], "cannot be read"),
    ],
)
def test_file_that_cannot_be_meant_is_refused_before_anything_is_asked(
    schedules: list[dict[str, Any]], words: str, schedule: Any, kfp: Any
) -> None:
    result = schedule(*schedules)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert kfp.asked == []


def test_person_sees_a_table(schedule: Any, home: Path) -> None:
    schedule(NIGHTLY)
    command = ["schedule", str(home / "schedules.yaml"), "--cluster", str(home / "cluster.yaml")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert "nightly" in shown.stdout and "keep" in shown.stdout
