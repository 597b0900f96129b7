"""Compiled for a platform: what pods are told, what Vertex is told, and what neither may hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import InputError, SettingsError
from tunegate.contracts.images import ALL_IMAGES
from tunegate.preflight.devices import find_device
from tunegate_pipelines.cluster import Cluster, read_cluster
from tunegate_pipelines.compile import PIPELINES, compile_pipeline
from tunegate_pipelines.pinned_inputs import commit_of
from tunegate_pipelines.placement import KFP, VERTEX, Planned, _need, platform
from tunegate_pipelines.plan import model_config
from tunegate_pipelines.platform_settings import compiled_for
from tunegate_pipelines.quantizers import image_of, quantizers
from tunegate_pipelines.recipe import resolve
from tunegate_pipelines.resources import REQUESTS, RETRIES
from tunegate_pipelines.secret_guard import refuse_secrets
from tunegate_pipelines.vertex import TAKEN

CLUSTER: dict[str, Any] = {
    "accelerators": [
        {"gpu": "L4", "node_labels": {"gpu": "l4"}},
        {"gpu": "H100", "node_labels": {"gpu": "h100"}},
    ],
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "secrets": [{"secret": "hub", "key": "token", "env": "HF_TOKEN"}],
    "steps": {"quantize": {"gpu": "L4", "timeout_seconds": 60, "memory": "200Gi"}, "merge": {"retries": 4}},
}
NOTHING_PLANNED = Planned(None, None, "no recipe")
SECTIONS = resolve(
    {},
    {
        "gate": {"policy": {"checks": [
            {"task": "tool_call", "metric": "exact", "candidate": "quantized", "reference": "merged", "margin": 0.1}
        ]}},
        "approve": {"required": False, "expires_seconds": 7200},
    },
)  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, **changes}), "utf-8")
    return path


def compiled(tmp_path: Path, cluster: Cluster, target: str, planned: Planned = NOTHING_PLANNED) -> list[Any]:
    made = platform(cluster, planned, target=target)
    return list(
        yaml.safe_load_all(compile_pipeline("finetune", tmp_path / "out.yaml", platform=made).read_text("utf-8"))
    )


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Executors of a document for a cluster: as KFP's own format has them, and as pods are told."""
    folder = tmp_path_factory.mktemp("cluster")
    known = Planned(SECTIONS, model_config("llama-3-8b"))
    pipeline, second = compiled(folder, read_cluster(written(folder)), KFP, known)
    return pipeline["deploymentSpec"]["executors"], second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_steps_with_an_accelerator_go_to_its_nodes_with_shared_memory(pods: tuple[Any, Any]) -> None:
    executors, told = pods
    for name, executor in executors.items():
        wanted = executor["container"]["resources"].get("accelerator")
        assert (wanted is not None) == ("nodeSelector" in told[name]) == ("tolerations" in told[name]), name
        if wanted:
            assert wanted["resourceType"] == "nvidia.com/gpu" and wanted["resourceCount"] == "1"
            assert told[name]["tolerations"] == CLUSTER["tolerations"]
            (mount,) = told[name]["emptyDirMounts"]
            assert (mount["mountPath"], mount["medium"], mount["sizeLimit"]) == ("/dev/shm", "Memory", "16Gi")


def test_every_step_ends_some_time_and_the_one_that_waits_for_a_person_after_them(pods: tuple[Any, Any]) -> None:
    _, told = pods
    seconds = {name: int(one["activeDeadlineSeconds"]) for name, one in told.items()}
    assert seconds["exec-await-approval"] == 7200 + 3600
    assert min(seconds.values()) == seconds["exec-quantize"] == 60


def test_secrets_are_references(pods: tuple[Any, Any]) -> None:
    for one in pods[1].values():
        (secret,) = one["secretAsEnv"]
        assert (secret["secretName"], secret["keyToEnv"]) == ("hub", [{"secretKey": "token", "envVar": "HF_TOKEN"}])


def test_host_memory_grows_with_the_model(tmp_path: Path) -> None:
    big = platform(
        read_cluster(written(tmp_path, accelerators=[{"gpu": "H200"}], steps={"train": {"gpu": "H200"}})),
        Planned(SECTIONS, model_config("smollm2-135m")),
        target=KFP,
    )
    assert big.placements["merge"].memory == REQUESTS["merge"].memory
    cluster = read_cluster(
        written(tmp_path, steps={step: {"gpu": "H100"} for step, r in REQUESTS.items() if r.accelerators})
    )
    bigger = platform(cluster, Planned(SECTIONS, model_config("llama-3-70b")), target=KFP)
    assert bigger.placements["merge"].memory == "279Gi"
    assert bigger.placements["gate"].memory == REQUESTS["gate"].memory


def test_engine_on_several_devices_is_given_them(tmp_path: Path) -> None:
    sections = {**SECTIONS, "serving": {**SECTIONS["serving"], "options": ["--tensor-parallel-size", "4"]}}
    known = Planned(sections, model_config("smollm2-135m"))
    made = platform(read_cluster(written(tmp_path)), known, target=KFP)
    assert made.placements["serve_check"].accelerators == 4
    assert made.placements["evaluate"].accelerators == 1


def test_memory_is_divided_only_among_the_devices_that_an_engine_is_told_to_use() -> None:
    """70 B fit 4 × H100 in the engine; a step that loads it on one device fits none, however many there are."""
    options = ["--tensor-parallel-size", "4"]
    sections = {**SECTIONS, "serving": {**SECTIONS["serving"], "options": options}}
    several = {"gpu": "H100", "accelerators": 4}
    known = Planned(sections, model_config("llama-3-70b"))
    needed = {
        step: _need(step, known, find_device("H100")) for step in ("serve_check", "evaluate", "quantize", "parity")
    }
    assert [step for step, (_, fits) in needed.items() if fits] == ["serve_check"]
    unused = Cluster(accelerators=({"gpu": "H100"},), steps={"serve_check": several})
    small = model_config("smollm2-135m")
    assert platform(unused, Planned(sections, small), target=KFP).placements["serve_check"].accelerators == 4
    with pytest.raises(InputError, match="not what the step uses"):
        platform(unused, Planned(SECTIONS, small), target=KFP)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_steps_are_tried_again_for_the_cause_that_they_have(pipeline: str, tmp_path: Path) -> None:
    """What judges says the same each time: only what may be interrupted, or unreachable, is tried again."""
    document = yaml.safe_load(compile_pipeline(pipeline, tmp_path / "out.yaml").read_text("utf-8"))
    levels = [document["root"], *document["components"].values()]
    tasks = {name: task for level in levels for name, task in level.get("dag", {}).get("tasks", {}).items()}
    tried = {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks.items() if "retryPolicy" in task}
    assert not tried.keys() & {"gate", "refused", "not-approved", "parity", "quantize", "summarize", "decide"}
    if pipeline == "finetune":
        assert tried["train"] == tried["await-approval"] == RETRIES["interrupted"].count
        assert tried["prepare"] == tried["promote"] == RETRIES["unreachable"].count


def test_retries_of_one_step_can_be_said(tmp_path: Path) -> None:
    cluster = read_cluster(written(tmp_path, steps={"merge": {"retries": 4}, "train": {"retries": 0}}))
    document, _ = compiled(tmp_path, cluster, KFP)
    tasks = document["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert tasks["merge"]["retryPolicy"]["maxRetryCount"] == 4
    assert "retryPolicy" not in tasks["train"]


def test_plain_document_fits_any_kfp_and_is_one(tmp_path: Path) -> None:
    text = compile_pipeline("finetune", tmp_path / "plain.yaml").read_text("utf-8")
    assert len(list(yaml.safe_load_all(text))) == 1


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_vertex_is_given_one_document_with_its_own_names_and_nothing_of_kubernetes(
    pipeline: str, tmp_path: Path
) -> None:
    output = tmp_path / "vertex.yaml"
    result = CliRunner().invoke(
        app, ["compile", "--target", "vertex", "--pipeline", pipeline, "--output", str(output), "--image-prefix", "eu/"]
    )
    assert result.exit_code == 0, result.output
    document = yaml.safe_load(output.read_text("utf-8"))  # a second document would raise
    from kfp import components

    components.load_component_from_file(str(output))
    assert "platforms" not in document and "nvidia.com" not in output.read_text("utf-8")
    asked = {
        name: executor["container"]["resources"]["accelerator"]
        for name, executor in document["deploymentSpec"]["executors"].items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert all(one["type"] == one["resourceType"] == "NVIDIA_A100_80GB" for one in asked.values())
    assert all(one["count"] == one["resourceCount"] == "1" for one in asked.values())
    assert ("exec-train" in asked) == (pipeline in ("finetune", "retrain"))


def test_no_image_of_vertex_is_known_at_run_time_only(tmp_path: Path) -> None:
    """KFP's driver fills in a parameter; that Vertex does so is written nowhere."""
    output = tmp_path / "vertex.yaml"
    assert CliRunner().invoke(app, ["compile", "--target", "vertex", "--output", str(output)]).exit_code == 0
    executors = yaml.safe_load(output.read_text("utf-8"))["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} <= set(ALL_IMAGES)
    with compiled_for(platform(Cluster(accelerators=({"gpu": "L4"},)), NOTHING_PLANNED, target=VERTEX)):
        assert quantizers().keys() == {"llmcompressor"}
    with pytest.raises(SettingsError, match="no image for the backend autoawq"):
        image_of("autoawq", {"llmcompressor": "tunegate/quantize:0.1.0"})


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("L4", "NVIDIA_L4"),
        ("A100 40GB", "NVIDIA_TESLA_A100"),
        ("A100 80GB", "NVIDIA_A100_80GB"),
        ("H100", "NVIDIA_H100_80GB"),
        ("H200", "NVIDIA_H200_141GB"),
        ("B200", "NVIDIA_B200"),
    ],
)
def test_vertexs_names_of_gpus(gpu: str, name: str, tmp_path: Path) -> None:
    (document,) = compiled(tmp_path, Cluster(accelerators=({"gpu": gpu},)), VERTEX)
    resources = document["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert resources["accelerator"]["resourceType"] == name


@pytest.mark.parametrize("gpu", ["A10G", "L40S", "RTX 4090"])
def test_gpu_that_vertex_has_not_is_refused(gpu: str) -> None:
    with pytest.raises(InputError, match="must be told which accelerator"):
        platform(Cluster(accelerators=({"gpu": gpu},)), NOTHING_PLANNED, target=VERTEX)


def test_settings_of_pods_are_refused_for_vertex_and_not_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        platform(read_cluster(written(tmp_path)), NOTHING_PLANNED, target=VERTEX)
    assert set(refused.value.items) == {
        "tolerations",
        "secrets",
        "accelerators[0].node_labels",
        "accelerators[1].node_labels",
        "steps.quantize.timeout_seconds",
    }


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Cluster) if field.name not in TAKEN])
def test_whatever_a_document_for_vertex_does_not_hold_is_refused(name: str) -> None:
    value = "other" if isinstance(getattr(Cluster(), name), str) else ({"key": "a", "secret": "b"},)
    cluster = dataclasses.replace(Cluster(accelerators=({"gpu": "L4"},)), **{name: value})
    with pytest.raises(InputError) as refused:
        platform(cluster, NOTHING_PLANNED, target=VERTEX)
    assert refused.value.items == (name,)


def test_memory_plan_places_steps_for_vertex_too(tmp_path: Path) -> None:
    cluster = Cluster(accelerators=({"gpu": "L4"}, {"gpu": "A100 80GB"}))
    (document,) = compiled(tmp_path, cluster, VERTEX, Planned(SECTIONS, model_config("smollm2-135m")))
    executors = document["deploymentSpec"]["executors"].values()
    asked = [one["container"]["resources"].get("accelerator", {}).get("resourceType") for one in executors]
    assert set(asked) == {None, "NVIDIA_L4"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hots": "x"}, "did you mean 'host'"),
        ({"token_env": "A", "token_file": "b"}, "two places"),
        ({"secrets": [{"secret": "hub", "key": "token", "env": "HF_TOKEN", "value": "hf_x"}]}, "unknown key"),
        ({"accelerators": [{"gpu": "L5"}]}, "not a GPU that is known"),
        ({"steps": {"trian": {}}}, "did you mean 'train'"),
        ({"steps": {"train": {"gpu": "B200"}}}, "no accelerator of the cluster"),
        ({"steps": {"gate": {"gpu": "L4"}}}, "uses none"),
        ({"steps": {"train": {"accelerators": 2}}}, "more than the step uses"),
        ({"steps": {"evaluate": {"accelerators": 2}}}, "more than the step uses"),
        ({"tolerations": [{"key": "a", "effect": "NoStart"}]}, "unknown value"),
        ({"secrets": [{"secret": "a", "key": "b", "env": "C", "steps": ["trian"]}]}, "did you mean 'train'"),
    ],
)
def test_cluster_file_is_read_strictly(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_cluster(written(tmp_path, **changes))
    assert words in str(refused.value)


def test_digests_lie_beside_the_cluster_file(tmp_path: Path) -> None:
    assert read_cluster(written(tmp_path, image_digests="d.json")).image_digests == str(tmp_path / "d.json")


def test_recipe_without_a_cluster_places_nothing_and_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compile", "--model", "llama-3-8b", "--output", str(tmp_path / "a.yaml")])
    assert result.exit_code == 2
    assert not (tmp_path / "a.yaml").exists()


def test_value_of_a_secret_is_found_in_whatever_is_sent() -> None:
    environment = {"MY_TOKEN": "s3cr3t-value", "HF_TOKEN": "hf_123456789", "SHORT": "main"}
    refuse_secrets({"document": "a main thing"}, ["MY_TOKEN", "SHORT", ""], environment)
    for value in ("s3cr3t-value", "hf_123456789"):
        with pytest.raises(InputError) as refused:
            refuse_secrets({"document": f"x: {value}"}, ["MY_TOKEN"], environment)
        assert value not in str(refused.value)


@pytest.mark.parametrize("value", ['p"ss\\wörd-1234', "line\nbreak-1234", "grüße-an-alle"])
def test_secret_is_found_however_a_document_writes_it(value: str) -> None:
    environment = {"MY_TOKEN": value}
    for sent in ({"a": [{"b": value}]}, {value: 1}, {"a": json.dumps({"b": value})}, f"x {value} y"):
        with pytest.raises(InputError) as refused:
            refuse_secrets({"document": sent}, ["MY_TOKEN"], environment)
        assert value not in str(refused.value)
    refuse_secrets({"document": {"a": "something else", "n": 12345678, "none": None}}, ["MY_TOKEN"], environment)


def test_document_that_holds_a_secret_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", 'hf_"quoted"_123')
    kinds = [{"gpu": "L4", "node_labels": {"team": 'hf_"quoted"_123'}}]
    cluster, output = written(tmp_path, accelerators=kinds, steps={}), tmp_path / "out.yaml"
    result = CliRunner().invoke(app, ["compile", "--cluster", str(cluster), "--output", str(output)])
    assert result.exit_code == 2 and "HF_TOKEN" in result.output and "quoted" not in result.output
    assert not output.exists()


def test_only_a_whole_commit_pins() -> None:
    assert commit_of(f"org/name@{'0' * 40}") == "0" * 40
    for address in ("org/name", "org/name@main", f"org/name@{'0' * 39}", f"name@{'0' * 40}", f"org/name@{'A' * 40}"):
        assert commit_of(address) is None, address


def test_cluster_settings_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("- a list", "utf-8")
    with pytest.raises(SettingsError, match="no cluster file"):
        read_cluster(path)
