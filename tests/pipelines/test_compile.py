"""The compiled pipeline: what a cluster is given is what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.contracts.images import ALL_IMAGES, QUANTIZERS
from tunegate.contracts.schemes import BACKENDS
from tunegate_pipelines.compile import PIPELINES, compile_pipeline, golden
from tunegate_pipelines.form import ADDRESSES, FORM

#: The image that is known when the run's recipe is.
CHOSEN = "{{$.inputs.parameters['pipelinechannel--check-quantizer']}}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_pipeline("finetune", tmp_path_factory.mktemp("compiled") / "finetune.yaml")


@pytest.fixture(scope="module")
def document(compiled: Path) -> Any:
    return yaml.safe_load(compiled.read_text("utf-8"))


def tasks(document: Any) -> dict[str, Any]:
    """Every task of every level, by name."""
    found = dict(document["root"]["dag"]["tasks"])
    for component in document["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_golden_file_is_what_the_code_compiles_to(pipeline: str, tmp_path: Path) -> None:
    compiled = compile_pipeline(pipeline, tmp_path / "compiled.yaml").read_text("utf-8")
    assert compiled == golden(pipeline).read_text("utf-8"), "run `make golden` and look at the difference"


@pytest.mark.parametrize("pipeline", ["approve", "promote"])
def test_answering_and_promoting_need_nothing_of_the_run_that_asked(pipeline: str) -> None:
    document = yaml.safe_load(golden(pipeline).read_text("utf-8"))
    inputs = document["root"]["inputDefinitions"]
    assert "artifacts" not in inputs
    assert {"request", "registry"} <= inputs["parameters"].keys()
    assert [name for name, parameter in inputs["parameters"].items() if not parameter.get("description")] == []
    (executor,) = document["deploymentSpec"]["executors"].values()
    assert "accelerator" not in executor["container"]["resources"]


def test_golden_file_loads_as_a_component() -> None:
    from kfp import components

    loaded = components.load_component_from_file(str(golden("finetune")))
    assert set(loaded.pipeline_spec.root.input_definitions.parameters) == {*ADDRESSES, *FORM, "recipe"}


def test_every_parameter_of_the_run_form_is_described(document: Any) -> None:
    parameters = document["root"]["inputDefinitions"]["parameters"]
    assert [name for name, parameter in parameters.items() if not parameter.get("description")] == []


def test_choices_of_a_setting_are_said_in_the_run_form(document: Any) -> None:
    import dataclasses

    from tunegate_pipelines.form import SECTIONS

    parameters = document["root"]["inputDefinitions"]["parameters"]
    for parameter, ((step, setting), *_) in FORM.items():
        field = next(f for f in dataclasses.fields(SECTIONS[step]) if f.name == setting)
        for choice in field.metadata["choices"]:
            assert f"'{choice}'" in parameters[parameter]["description"]


def test_no_task_is_ever_taken_from_the_cache(document: Any) -> None:
    """The cache's key does not hold the content of artifacts: a hit may be what was made from other bytes."""
    found = {name: task for name, task in tasks(document).items() if not name.startswith(("condition", "exit-handler"))}
    steps = (
        "prepare",
        "train",
        "merge",
        "quantize",
        "parity",
        "evaluate-base",
        "evaluate-model",
        "evaluate-model-2",
        "evaluate-champion",
        "serve-check",
        "gate",
    )
    approval = ("request-approval", "await-approval", "not-approved", "promote-approved")
    assert {"check", *steps, *approval, "promote", "refused", "summarize"} == found.keys()
    assert [name for name, task in found.items() if task.get("cachingOptions", {}).get("enableCache")] == []


def test_promotion_stands_behind_the_verdict(document: Any) -> None:
    assert conditions(document, "promote") == ["== 'PASS'", "== 'waived'"]
    assert conditions(document, "request-approval") == ["== 'PASS'", "== 'required'"]
    assert conditions(document, "promote-approved") == ["== 'PASS'", "== 'required'", "== 'approve'"]
    assert conditions(document, "not-approved") == ["== 'PASS'", "== 'required'", "!(== 'approve')"]


def conditions(document: Any, task: str) -> list[str]:
    """What must hold before a task runs, from the outside in: the comparison, without what is compared."""
    within = {
        name: (parent, known)
        for parent, component in document["components"].items()
        for name, known in component.get("dag", {}).get("tasks", {}).items()
    }
    found = []
    parent, _ = within[task]
    while parent.startswith("comp-condition"):
        group = next(n for n, known in within.items() if known[1]["componentRef"]["name"] == parent)
        parent, known = within[group]
        if "triggerPolicy" in known:
            text = known["triggerPolicy"]["condition"]
            found.insert(0, re.sub(r"inputs\.parameter_values\[[^]]*\] ", "", text))
    return found


def test_heavy_steps_ask_for_an_accelerator_and_light_ones_for_none(document: Any) -> None:
    executors = document["deploymentSpec"]["executors"]
    asked = {name for name, e in executors.items() if e["container"].get("resources", {}).get("accelerator")}
    assert asked == {
        f"exec-{name}"
        for name in (
            "train",
            "quantize",
            "parity",
            "evaluate-base",
            "evaluate-model",
            "evaluate-model-2",
            "evaluate-champion",
            "serve-check",
        )
    }
    assert all("cpuLimit" in str(e) or "resourceCpuLimit" in str(e) for e in executors.values())


def test_every_image_is_of_the_one_table(document: Any) -> None:
    images = {e["container"]["image"] for e in document["deploymentSpec"]["executors"].values()}
    assert images - {CHOSEN} == set(ALL_IMAGES) - set(QUANTIZERS.values())


def test_quantize_runs_in_the_image_that_the_first_task_chose_for_its_backend(document: Any) -> None:
    """KFP's driver puts the parameter in the place of the image (initPodSpecPatch in backend/src/v2/driver)."""
    found = tasks(document)
    assert document["deploymentSpec"]["executors"]["exec-quantize"]["container"]["image"] == CHOSEN
    chosen = found["quantize"]["inputs"]["parameters"]["pipelinechannel--check-quantizer"]
    assert chosen["taskOutputParameter"] == {"outputParameterKey": "quantizer", "producerTask": "check"}
    given = found["check"]["inputs"]["parameters"]["quantizers"]["runtimeValue"]["constant"]
    assert given == QUANTIZERS and given.keys() == set(BACKENDS)


def test_image_prefix_reaches_every_image(tmp_path: Path) -> None:
    text = compile_pipeline("finetune", tmp_path / "own.yaml", image_prefix="registry.example.com/ml/").read_text(
        "utf-8"
    )
    assert text.count("image: registry.example.com/ml/tunegate/") == text.count("image: ") - 1  # CHOSEN
    assert text.count(": registry.example.com/ml/tunegate/quantize") == len(QUANTIZERS)
    assert not re.search(r": tunegate/", text)


def test_component_bodies_hold_no_program(document: Any) -> None:
    """A component describes; what runs is the installed package, which has tests and types."""
    for name, executor in document["deploymentSpec"]["executors"].items():
        source = executor["container"]["command"][-1]
        assert "pip install" not in source, name
        assert source.count("import launch") == 1, name
