"""`tunegate submit` and `follow`: what reaches KFP, where steps run, and how the run's end becomes an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate_pipelines import kfp_server

PLAN = ["--model", "llama-3-8b"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_server, "WAITS_SECONDS", (0.0, 0.0, 0.0))


def submit(home: Path, *arguments: str, env: dict[str, str] | None = None) -> Any:
    command = ["submit", str(home / "recipe.yaml"), "--cluster", str(home / "cluster.yaml"), "--poll-seconds", "0.05"]
    return CliRunner().invoke(app, [*command, *arguments], env=env)


def test_run_is_started_of_an_uploaded_version_with_the_whole_run_form(kfp: Any, home: Path, cluster: Any) -> None:
    cluster(service_account="runner", pipeline_root="gs://models/runs")
    result = submit(home, *PLAN, "--no-follow", "--json", "--set", "seed=7")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    (run,) = kfp.runs.values()
    assert told["run"] == run["run_id"]
    assert told["link"] == f"{kfp.url}/#/runs/details/{run['run_id']}"
    assert run["pipeline_version_reference"] == {
        "pipeline_id": told["pipeline_id"],
        "pipeline_version_id": told["version_id"],
    }
    assert (run["service_account"], run["runtime_config"]["pipeline_root"]) == ("runner", "gs://models/runs")
    parameters = run["runtime_config"]["parameters"]
    assert parameters["num_train_epochs"] == 1.0 and isinstance(parameters["num_train_epochs"], float)
    assert parameters["seed"] == 7
    assert parameters["recipe"]["quantize"] == {"serving_target": "vllm-cuda-sm90"}
    definitions = next(yaml.safe_load_all(kfp.documents[told["version_id"]]))["root"]["inputDefinitions"]["parameters"]
    assert parameters.keys() <= definitions.keys()
    assert kfp.experiments[run["experiment_id"]]["display_name"] == "tunegate"


def test_same_document_is_one_version_however_often_it_is_submitted(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    first, second = (json.loads(submit(home, *PLAN, "--no-follow", "--json").stdout) for _ in range(2))
    assert first["version_id"] == second["version_id"]
    assert first["run"] != second["run"]
    assert len(kfp.of("upload_pipeline")) == 1
    assert len(kfp.of("upload_pipeline_version")) == 1
    cluster(shared_memory="8Gi")
    third = json.loads(submit(home, *PLAN, "--no-follow", "--json").stdout)
    assert third["version_id"] != first["version_id"]
    assert third["pipeline_id"] == first["pipeline_id"]


def test_pipeline_of_a_namespace_is_found_again_there(kfp: Any, home: Path, cluster: Any) -> None:
    cluster(namespace="team-a")
    first, second = (json.loads(submit(home, *PLAN, "--no-follow", "--json").stdout) for _ in range(2))
    assert (first["pipeline_id"], first["version_id"]) == (second["pipeline_id"], second["version_id"])
    assert [one["namespace"] for one in kfp.pipelines.values()] == ["team-a"]
    assert [one["namespace"] for one in kfp.experiments.values()] == ["team-a"]
    cluster(namespace="team-b")
    other = json.loads(submit(home, *PLAN, "--no-follow", "--json").stdout)
    assert other["pipeline_id"] != first["pipeline_id"]


def test_steps_run_where_the_memory_plan_says_they_fit(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    long = ["--no-follow", "--json", "--set", "max_length=4096"]
    four = ["--set", "method=lora", "--set", "train.per_device_train_batch_size=4"]
    told = json.loads(submit(home, *PLAN, *long).stdout)
    assert told["placements"]["train"]["gpu"] == "L4"  # QLoRA of 8B
    told = json.loads(submit(home, *PLAN, *long, *four).stdout)
    assert told["placements"]["train"]["gpu"] == "A100 80GB"
    assert told["placements"]["evaluate"]["gpu"] == "L4"
    document = list(yaml.safe_load_all(kfp.documents[told["version_id"]]))
    pods = document[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    label = "cloud.google.com/gke-accelerator"
    assert pods["exec-train"]["nodeSelector"]["labels"] == {label: "nvidia-a100-80gb"}
    assert pods["exec-evaluate-base"]["nodeSelector"]["labels"] == {label: "nvidia-l4"}
    assert "nodeSelector" not in pods["exec-gate"]


def test_what_fits_nowhere_is_refused_before_anything_is_sent(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    result = submit(home, "--model", "llama-3-70b", "--set", "method=full", "--set", "learning_rate=2e-5")
    assert result.exit_code == 2
    assert "fits no accelerator of the cluster" in result.stderr
    assert kfp.asked == []


def test_base_model_that_is_elsewhere_takes_the_last_accelerator_and_says_so(
    kfp: Any, home: Path, cluster: Any
) -> None:
    cluster()
    told = json.loads(submit(home, "--no-follow", "--json").stdout)
    assert told["placements"]["train"]["gpu"] == "A100 80GB"
    assert "--model" in told["placements"]["train"]["why"]


def test_followed_run_that_succeeds_exits_0_and_shows_its_tasks(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    kfp.will("PENDING")
    kfp.will("RUNNING", ("root-driver", "SUCCEEDED"), ("check", "SUCCEEDED"), ("train", "RUNNING"))
    kfp.will("SUCCEEDED", ("check", "SUCCEEDED"), ("train", "SUCCEEDED"), ("evaluate-model", "SUCCEEDED"))
    result = submit(home, *PLAN)
    assert result.exit_code == 0, result.output
    for word in (
        "✓ check (2m59s)",
        "train started",
        "✓ train",
        "✓ evaluate merged",
        "1/19 tasks",
        "#/runs/details/run-0",
    ):
        assert word in result.stdout, word
    assert "driver" not in result.stdout


@pytest.mark.parametrize(
    ("state", "tasks", "code", "words"),
    [
        ("FAILED", [("train", "FAILED"), ("summarize", "SUCCEEDED")], 1, "failed in train"),
        ("FAILED", [("gate", "SUCCEEDED"), ("refused", "FAILED")], 3, "The gate refused"),
        ("FAILED", [("await-approval", "SUCCEEDED"), ("not-approved", "FAILED")], 3, "Nobody approved"),
        ("CANCELED", [("train", "CANCELED")], 1, "stopped before its end"),
    ],
)
def test_runs_end_is_the_commands_exit_code(
    state: str, tasks: list[tuple[str, str]], code: int, words: str, kfp: Any, home: Path, cluster: Any
) -> None:
    cluster()
    kfp.will(state, *tasks, error="OOMKilled")
    result = submit(home, *PLAN, "--json")
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert f"{kfp.url}/#/runs/details/run-0" in result.stderr
    told = json.loads(result.stdout)
    assert (told["state"], told["tasks"]) == (state, dict(tasks))
    if code == 1 and state == "FAILED":
        assert "OOMKilled" in result.stderr


def test_follow_finds_a_run_again(kfp: Any, home: Path, cluster: Any) -> None:
    path = cluster()
    submit(home, *PLAN, "--no-follow")
    kfp.will("SUCCEEDED", ("check", "SUCCEEDED"))
    assert CliRunner().invoke(app, ["follow", "run-0", "--cluster", str(path)]).exit_code == 0
    unknown = CliRunner().invoke(app, ["follow", "run-9", "--cluster", str(path)])
    assert unknown.exit_code == 2
    assert "Run not found" in unknown.stderr


def test_token_is_sent_and_stands_in_nothing_that_others_read(kfp: Any, home: Path, cluster: Any) -> None:
    kfp.token = "a-very-secret-token"
    cluster(token_env="KFP_TOKEN")
    secret = {"KFP_TOKEN": kfp.token, "HF_TOKEN": "hf_abcdefghijkl"}
    result = submit(home, *PLAN, "--no-follow", env=secret)
    assert result.exit_code == 0, result.output
    assert {one.headers["authorization"] for one in kfp.asked} == {f"Bearer {kfp.token}"}
    read_by_others = [one.raw.decode() for one in kfp.asked] + [str(one.query) for one in kfp.asked] + [result.output]
    assert [text for text in read_by_others for value in secret.values() if value in text] == []
    pods = list(yaml.safe_load_all(kfp.documents["version-0"]))[1]["platforms"]["kubernetes"]["deploymentSpec"]
    (reference,) = pods["executors"]["exec-train"]["secretAsEnv"]
    assert (reference["secretName"], reference["keyToEnv"]) == ("hub", [{"secretKey": "token", "envVar": "HF_TOKEN"}])
    assert "secretAsEnv" not in pods["executors"]["exec-merge"]


def test_secret_that_somebody_wrote_into_a_recipe_is_not_sent(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    result = submit(home, *PLAN, "--set", "promote.note=hf_abcdefghijkl", env={"HF_TOKEN": "hf_abcdefghijkl"})
    assert result.exit_code == 2
    assert "HF_TOKEN" in result.stderr
    assert "hf_abcdefghijkl" not in result.output
    assert kfp.asked == []


def test_secret_in_the_name_of_a_run_is_not_sent(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    result = submit(home, *PLAN, "--name", "try hf_abcdefghijkl", env={"HF_TOKEN": "hf_abcdefghijkl"})
    assert result.exit_code == 2 and "its name" in result.stderr and "hf_abcdefghijkl" not in result.output
    assert kfp.asked == []


@pytest.mark.parametrize("given", ["", "another-token"])
def test_who_is_not_signed_in_is_told_so(given: str, kfp: Any, home: Path, cluster: Any) -> None:
    kfp.token = "a-very-secret-token"
    cluster(token_env="KFP_TOKEN" if given else "")
    result = submit(home, *PLAN, env={"KFP_TOKEN": given})
    assert result.exit_code == 2
    assert "refuses who asks" in result.stderr
    assert "token_env" in result.stderr
    assert "another-token" not in result.output
    assert kfp.runs == {}


def test_token_in_a_file_is_read_again_while_a_run_is_followed(kfp: Any, home: Path, cluster: Any) -> None:
    """Training takes longer than a token lives."""
    kfp.token = "the-first-token"
    file = home / "token"
    file.write_text(kfp.token + "\n", "utf-8")
    cluster(token_file=str(file))
    kfp.will("RUNNING", ("train", "RUNNING"))
    kfp.will("SUCCEEDED", ("train", "SUCCEEDED"))

    def renewed() -> None:
        kfp.token = "the-second-token"
        file.write_text(kfp.token, "utf-8")

    kfp.looked = renewed
    result = submit(home, *PLAN)
    assert result.exit_code == 0, result.output
    sent = [one.headers["authorization"] for one in kfp.of("run_service_get_run")]
    assert sent[0] == "Bearer the-first-token" and sent[-1] == "Bearer the-second-token"
    assert "-token" not in result.output.replace(str(file), "")
    leaked = submit(home, *PLAN, "--set", "promote.note=the-second-token")
    assert leaked.exit_code == 2 and "the-second-token" not in leaked.output
    file.write_text("", "utf-8")
    assert "is empty" in submit(home, *PLAN).stderr


def test_missing_token_is_named_before_anything_is_asked(kfp: Any, home: Path, cluster: Any) -> None:
    cluster(token_env="KFP_TOKEN")
    result = submit(home, *PLAN, env={"KFP_TOKEN": ""})
    assert result.exit_code == 2
    assert "KFP_TOKEN is empty" in result.stderr
    assert kfp.asked == []


def test_server_that_cannot_answer_for_a_moment_is_asked_again(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    kfp.fail("pipeline_service_list_pipelines", 503, "warming up", times=2)
    kfp.will("RUNNING", ("train", "RUNNING"))
    kfp.will("SUCCEEDED", ("train", "SUCCEEDED"))
    kfp.fail("run_service_get_run", 502, "proxy", times=3)
    assert submit(home, *PLAN).exit_code == 0
    assert len(kfp.of("pipeline_service_list_pipelines")) == 3


def test_following_outlives_a_server_that_is_away_for_minutes(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    kfp.will("RUNNING", ("train", "RUNNING"))
    kfp.will("SUCCEEDED", ("train", "SUCCEEDED"))

    def away() -> None:
        kfp.looked = lambda: None
        kfp.fail("run_service_get_run", 503, "upgrade", times=9)  # more than one question is asked again

    kfp.looked = away
    assert submit(home, *PLAN).exit_code == 0


@pytest.mark.parametrize("status", [503, 401])
def test_following_that_fails_says_what_is_known_and_how_to_go_on(
    status: int, kfp: Any, home: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on: a script that takes the end of its following for the run's end would start another one."""
    monkeypatch.setattr("tunegate_pipelines.follow_run.PATIENCE_SECONDS", 0.1)
    cluster()
    kfp.will("RUNNING", ("train", "RUNNING"))

    def away() -> None:
        kfp.looked = lambda: None
        kfp.fail("run_service_get_run", status, "no", times=999)

    kfp.looked = away
    result = submit(home, *PLAN, "--json")
    assert result.exit_code == 75
    told = json.loads(result.stdout)
    assert (told["run"], told["state"], told["tasks"]) == ("run-0", "RUNNING", {"train": "RUNNING"})
    assert "tunegate follow run-0" in result.stderr and f"HTTP {status}" in result.stderr


def test_run_that_was_started_is_named_even_when_it_was_never_seen(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    kfp.fail("run_service_get_run", 401, times=999)
    result = submit(home, *PLAN, "--json")
    assert result.exit_code == 75
    assert json.loads(result.stdout)["run"] == "run-0"
    followed = CliRunner().invoke(app, ["follow", "run-0", "--cluster", str(home / "cluster.yaml")])
    assert followed.exit_code == 2  # nothing is known of it: bad input


def test_token_that_ended_is_waited_for_when_its_file_is_renewed(kfp: Any, home: Path, cluster: Any) -> None:
    (home / "token").write_text("a-token-of-the-file", "utf-8")
    cluster(token_file=str(home / "token"))
    kfp.will("RUNNING", ("train", "RUNNING"))
    kfp.will("SUCCEEDED", ("train", "SUCCEEDED"))

    def ended() -> None:
        kfp.looked = lambda: None
        kfp.fail("run_service_get_run", 401, times=2)

    kfp.looked = ended
    assert submit(home, *PLAN).exit_code == 0


def test_server_that_goes_on_failing_ends_the_command_with_1(kfp: Any, home: Path, cluster: Any) -> None:
    cluster()
    kfp.fail("pipeline_service_list_pipelines", 500, "database is locked", times=9)
    result = submit(home, *PLAN)
    assert result.exit_code == 1
    assert "database is locked" in result.stderr


def test_starting_a_run_is_not_tried_twice(kfp: Any, home: Path, cluster: Any) -> None:
    """The first try may have started one though its answer was lost."""
    cluster()
    kfp.fail("run_service_create_run", 504, "timeout")
    result = submit(home, *PLAN)
    assert result.exit_code == 1
    assert "look in its UI" in result.stderr
    assert len(kfp.of("run_service_create_run")) == 1


def test_nothing_that_listens_is_said_with_its_address(kfp: Any, home: Path, cluster: Any) -> None:
    cluster(host="http://127.0.0.1:9")
    result = submit(home, *PLAN)
    assert result.exit_code == 1
    assert "http://127.0.0.1:9" in result.stderr


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("base_model", "meta-llama/Meta-Llama-3-8B@main"),
        ("base_model", "meta-llama/Meta-Llama-3-8B"),
        ("base_model", f"meta-llama/Meta-Llama-3-8B@{'a' * 12}"),
        ("dataset", "trl-lib/Capybara@v1"),
        ("dataset", "rows.jsonl"),
        ("registry", "registry"),
    ],
)
def test_input_that_may_be_another_one_tomorrow_is_refused(
    name: str, address: str, kfp: Any, home: Path, cluster: Any
) -> None:
    cluster()
    result = submit(home, *PLAN, "--set", f"{name}={address}")
    assert result.exit_code == 2
    assert name in result.stderr and address in result.stderr
    assert kfp.asked == []


def test_following_that_is_stopped_leaves_the_run_and_says_how_to_go_on(
    kfp: Any, home: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster()
    kfp.will("RUNNING", ("train", "RUNNING"))

    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunegate_pipelines.follow_run.follow_run", interrupted)
    result = submit(home, *PLAN)
    assert result.exit_code == 75
    assert "tunegate follow run-0" in result.stderr
    assert list(kfp.runs) == ["run-0"]


def test_description_that_the_requests_are_held_against_is_kfps_own() -> None:
    """The copy beside this file, where the whole description lies beside the checkout."""
    whole = Path(__file__).parents[4] / "shared" / "schemas" / "kfp_api.swagger.json"
    if not whole.is_file():
        pytest.skip(f"{whole} is absent: the copy alone is used")
    described = json.loads(whole.read_text("utf-8"))
    copy = json.loads(Path(__file__).with_name("kfp_api.json").read_text("utf-8"))
    assert copy["info"]["version"] == described["info"]["version"]
    assert _without_words(copy["definitions"]).items() <= _without_words(described["definitions"]).items()
    for path, methods in copy["paths"].items():
        for method, operation in methods.items():
            assert operation.items() <= _without_words(described["paths"][path][method]).items(), path


def _without_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_words(one) for one in value]
    if not isinstance(value, dict):
        return value
    words = ("description", "title", "summary", "tags")
    return {key: _without_words(one) for key, one in value.items() if key not in words or isinstance(one, dict)}
