"""Measuring a running server: what is asked, what is refused before minutes are spent, and what is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import InputError, RunError, SettingsError
from tunegate.costs.measure import measure
from tunegate.costs.measurement import METRICS, read_measurement, write_measurement
from tunegate.costs.memory import processes_memory_bytes
from tunegate.costs.settings import Load
from tunegate.serving.address import Address
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.envoy_documents import Backend
from tunegate.serving.process import Server

Serve = Callable[..., Server]
Where = Callable[..., ServeEnvironment]
LOAD = Load(at_once=1, requests=6, prompt_tokens=8, answer_tokens=4, warm_up=1, seed=3)


def test_a_running_server_is_measured_under_the_stated_load(serve: Serve, where: Where, tmp_path: Path) -> None:
    server = serve()
    marks: dict[str, float] = {"long ago": time.monotonic()}
    found = measure(
        LOAD,
        url=server.url + "/v1",
        models=["champion", server.served_name],
        label="mine",
        where=where(),
        pid=server.group,
        marks=marks,
    )
    assert (found.completed, found.failed, found.url) == (6, 0, server.url)
    assert [one.model for one in found.asked] == ["champion", server.served_name] * 3
    assert {model.root for model in found.models} == {str(tmp_path / "model")}
    assert found.latency.keys() == METRICS.keys()
    assert found.latency["itl"].p50 == pytest.approx(2.0)  # what the stand-in says of its tokens: 1, 2 and 3 ms
    assert all(one.gaps_ms == (1.0, 2.0, 3.0) and one.first_token_ms > 0 for one in found.asked)
    assert found.memory_bytes is not None and 1e6 < found.memory_bytes < 1e9
    assert found.marks["long ago"] < 0 and found.asked[0].at_seconds == 0
    assert found.machine.cpus >= 1
    write_measurement(found, tmp_path / "new" / "mine.json")
    assert read_measurement(tmp_path / "new" / "mine.json") == found


@pytest.mark.parametrize("load", [Load(), Load(rate=1.0, at_once=1)])
def test_a_load_that_is_not_stated_is_refused(load: Load, where: Where) -> None:
    with pytest.raises(SettingsError, match="load is not stated"):
        measure(load, url="http://127.0.0.1:1", models=["m"], label="x", where=where())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h:1", "http://h:1/v2", "http://me:secret@h:1", "http://[::1"])
def test_an_address_that_cannot_be_asked_is_refused_and_no_password_is_shown(url: str, where: Where) -> None:
    with pytest.raises(SettingsError, match="address cannot be used") as raised:
        measure(LOAD, url=url, models=["m"], label="x", where=where())
    assert "secret" not in str(raised.value)


def test_a_model_that_is_not_served_is_refused_before_anything_is_asked(serve: Serve, where: Where) -> None:
    server = serve()
    with pytest.raises(InputError, match="lacks a model") as raised:
        measure(LOAD, url=server.url, models=["champion", "chamipon"], label="x", where=where(code=9, says=""))
    assert raised.value.items == ("chamipon",)


def test_without_a_tokenizer_on_this_machine_one_is_asked_for(serve: Serve, where: Where, tmp_path: Path) -> None:
    server = serve()
    (tmp_path / "model/tokenizer_config.json").unlink()
    with pytest.raises(SettingsError, match="no tokenizer"):
        measure(LOAD, url=server.url, models=["champion"], label="x", where=where())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tokenizer_config.json").write_text("{}")
    found = measure(
        LOAD, url=server.url, models=["champion"], label="x", where=where(), tokenizer=tmp_path / "elsewhere"
    )
    assert found.completed == LOAD.requests


def test_a_fleet_is_measured_at_its_address_by_the_names_that_clients_use(
    serve: Serve, where: Where, tmp_path: Path
) -> None:
    server = serve()
    with Address(tmp_path / "a") as address:
        address.switch(Backend("set-1", server.url), names={"support": server.served_name, "legal": "champion"})
        asked = {"url": address.url, "models": ["support", "legal"], "label": "fleet", "where": where()}
        with pytest.raises(SettingsError, match="no tokenizer"):
            measure(LOAD, **asked)
        found = measure(LOAD, **asked, tokenizer=tmp_path / "model")
    assert (found.completed, found.failed) == (LOAD.requests, 0)
    assert [model.root for model in found.models] == [server.served_name, "champion"]  # the digest that answered


def test_a_process_that_is_not_there_is_named_before_minutes_are_spent(serve: Serve, where: Where) -> None:
    server = serve()
    gone = max(psutil.pids()) + 1000
    with pytest.raises(InputError, match=f"memory of process {gone}"):
        measure(LOAD, url=server.url, models=["champion"], label="x", where=where(code=9, says=""), pid=gone)


def test_a_generator_that_fails_is_reported_with_what_its_log_tells(serve: Serve, where: Where) -> None:
    server = serve()
    says = "INFO\nValueError: Tokenizer class X does not exist"
    with pytest.raises(RunError, match="load generator failed") as raised:
        measure(LOAD, url=server.url, models=["champion"], label="x", where=where(code=1, says=says))
    assert raised.value.items == ("ValueError: Tokenizer class X does not exist",)


@pytest.mark.parametrize("lacks", ["start_times", "p99_tpot_ms", "output_throughput"])
def test_a_result_of_another_shape_is_no_measurement(serve: Serve, where: Where, lacks: str) -> None:
    server = serve()
    with pytest.raises(RunError, match="something else") as raised:
        measure(LOAD, url=server.url, models=["champion"], label="x", where=where(lacks=lacks))
    assert lacks in raised.value.seen


def test_memory_counts_every_process_that_the_first_one_started(serve: Serve) -> None:
    server = serve(deaf=True)  # starts a worker
    worker = psutil.Process(server.group).children()[0].pid
    alone = processes_memory_bytes(worker)
    assert 0 < alone < processes_memory_bytes(server.group)


def test_command_measures_and_pages_set_side_by_side(serve: Serve, where: Where, tmp_path: Path) -> None:
    server, python = serve(), str(where().python)
    run = CliRunner().invoke
    options = ["--model", "champion", "--requests", "5", "--prompt-tokens", "8", "--answer-tokens", "4"]
    common = ["costs", "measure", server.url, *options, "--python", python]
    first = run(app, [*common, "--at-once", "2", "--output", str(tmp_path / "one.json"), "--json"])
    assert first.exit_code == 0, first.output
    said = json.loads(first.stdout)
    assert (said["completed"], said["label"], said["memory_bytes"]) == (5, "one", None)
    assert "asked" not in said
    shown = run(app, [*common, "--rate", "50", "--output", str(tmp_path / "two.json"), "--label", "a rate"])
    assert shown.exit_code == 0, shown.output
    assert "time to first token" in shown.stdout and "not measured" in shown.stdout
    seeds = {read_measurement(tmp_path / name).load.seed for name in ("one.json", "two.json")}
    assert len(seeds) == 2  # another one each time: what a server has seen is answered from its cache
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json")]
    paged = run(app, ["costs", "page", *files, "--output", str(tmp_path / "costs.html"), "--json"])
    assert paged.exit_code == 0, paged.output
    assert [one["label"] for one in json.loads(paged.stdout)["measurements"]] == ["one", "a rate"]
    assert "The loads differ" in (tmp_path / "costs.html").read_text("utf-8")


def test_command_refuses_a_load_that_is_not_stated(where: Where, tmp_path: Path) -> None:
    command = ["costs", "measure", "http://127.0.0.1:1", "--model", "m", "--python", str(where().python)]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "x.json")])
    assert result.exit_code == 2
    assert "--at-once" in result.stderr
    assert not (tmp_path / "x.json").exists()
