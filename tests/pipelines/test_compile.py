"""The compiled pipeline: what a cluster is given is what the code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunegate.contracts.images import IMAGES
from tunegate_pipelines.compile import GOLDEN, compile_finetune
from tunegate_pipelines.form import ADDRESSES, FORM


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_finetune(tmp_path_factory.mktemp("compiled") / "finetune.yaml")


@pytest.fixture(scope="module")
def document(compiled: Path) -> Any:
    return yaml.safe_load(compiled.read_text("utf-8"))


def tasks(document: Any) -> dict[str, Any]:
    """Every task of every level, by name."""
    found = dict(document["root"]["dag"]["tasks"])
    for component in document["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def test_golden_file_is_what_the_code_compiles_to(compiled: Path) -> None:
    assert compiled.read_text("utf-8") == GOLDEN.read_text("utf-8"), "run `make golden` and look at the difference"


def test_golden_file_loads_as_a_component() -> None:
    from kfp import components

    loaded = components.load_component_from_file(str(GOLDEN))
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
        "gate",
    )
    assert {"check", *steps, "promote", "refused", "summarize"} == found.keys()
    assert [name for name, task in found.items() if task.get("cachingOptions", {}).get("enableCache")] == []


def test_promotion_stands_behind_the_verdict(document: Any) -> None:
    branch = next(c for c in document["components"].values() if "promote" in c.get("dag", {}).get("tasks", {}))
    name = next(n for n, c in document["components"].items() if c is branch)
    condition = next(t for t in tasks(document).values() if t["componentRef"]["name"] == name)
    assert "== 'PASS'" in condition["triggerPolicy"]["condition"]
    assert not condition["triggerPolicy"]["condition"].startswith("!")


def test_heavy_steps_ask_for_an_accelerator_and_light_ones_for_none(document: Any) -> None:
    executors = document["deploymentSpec"]["executors"]
    asked = {name for name, e in executors.items() if e["container"].get("resources", {}).get("accelerator")}
    assert asked == {
        f"exec-{name}"
        for name in ("train", "quantize", "parity", "evaluate-base", "evaluate-model", "evaluate-model-2")
    }
    assert all("cpuLimit" in str(e) or "resourceCpuLimit" in str(e) for e in executors.values())


def test_every_image_is_of_the_one_table(document: Any) -> None:
    images = {e["container"]["image"] for e in document["deploymentSpec"]["executors"].values()}
    assert images == set(IMAGES.values())


def test_image_prefix_reaches_every_image(tmp_path: Path) -> None:
    text = compile_finetune(tmp_path / "own.yaml", image_prefix="registry.example.com/ml/").read_text("utf-8")
    assert text.count("image: registry.example.com/ml/tunegate/") == text.count("image: ")


def test_component_bodies_hold_no_program(document: Any) -> None:
    """A component describes; what runs is the installed package, which has tests and types."""
    for name, executor in document["deploymentSpec"]["executors"].items():
        source = executor["container"]["command"][-1]
        assert "pip install" not in source, name
        assert source.count("import launch") == 1, name
