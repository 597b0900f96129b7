"""Images by digest: a pipeline that was compiled with them runs what was built, or is not compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import InputError
from tunegate.contracts.images import ALL_IMAGES, image_name
from tunegate_pipelines.compile import PIPELINES, compile_pipeline
from tunegate_pipelines.image_digests import read_digests

NAMES = sorted(map(image_name, ALL_IMAGES))
DIGESTS = {name: f"sha256:{number:064x}" for number, name in enumerate(NAMES, 1)}


def written(folder: Path, content: Any) -> Path:
    path = folder / "digests.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def images(path: Path) -> list[str]:
    """Every image that a compiled pipeline names: of its tasks, and those that quantize's is chosen of."""
    document = yaml.safe_load(path.read_text("utf-8"))
    named = [executor["container"]["image"] for executor in document["deploymentSpec"]["executors"].values()]
    for component in document["components"].values():
        given = component.get("dag", {}).get("tasks", {}).get("check", {}).get("inputs", {}).get("parameters", {})
        named += given.get("quantizers", {}).get("runtimeValue", {}).get("constant", {}).values()
    return [image for image in named if not image.startswith("{{")]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_image_of_a_pipeline_is_the_one_that_was_built(pipeline: str, tmp_path: Path) -> None:
    output, digests = tmp_path / "compiled.yaml", written(tmp_path, DIGESTS)
    command = ["compile", "--pipeline", pipeline, "--output", str(output)]
    command += ["--image-prefix", "registry.example.com/ml/", "--image-digests", str(digests)]
    assert CliRunner().invoke(app, command).exit_code == 0
    found = set(images(output))
    assert found and found <= {f"registry.example.com/ml/{name}@{digest}" for name, digest in DIGESTS.items()}


def test_digests_change_nothing_but_the_images(tmp_path: Path) -> None:
    plain = compile_pipeline("finetune", tmp_path / "plain.yaml")
    exact = compile_pipeline("finetune", tmp_path / "exact.yaml", digests=DIGESTS)
    for reference in ALL_IMAGES:
        name = image_name(reference)
        assert images(plain).count(reference) == images(exact).count(f"{name}@{DIGESTS[name]}") > 0
    other = [
        (before, after)
        for before, after in zip(plain.read_text().splitlines(), exact.read_text().splitlines(), strict=True)
        if before != after and not before.endswith(ALL_IMAGES)
    ]
    assert other == []


def test_a_pipeline_with_an_image_that_was_not_built_is_not_written(tmp_path: Path) -> None:
    output = tmp_path / "compiled.yaml"
    some = {name: digest for name, digest in DIGESTS.items() if name != "tunegate/train"}
    with pytest.raises(InputError) as caught:
        compile_pipeline("finetune", output, digests=some)
    assert list(caught.value.items) == ["tunegate/train"]
    assert not output.exists()


def test_a_pipeline_asks_for_no_digest_of_an_image_that_it_does_not_use(tmp_path: Path) -> None:
    control = {"tunegate/control": DIGESTS["tunegate/control"]}
    assert images(compile_pipeline("promote", tmp_path / "promote.yaml", digests=control))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    path.write_text("{", "utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        read_digests(path)


@pytest.mark.parametrize(
    "content",
    [
        {**DIGESTS, "tunegate/trian": DIGESTS["tunegate/train"]},
        {**DIGESTS, "tunegate/train": "latest"},
        {**DIGESTS, "tunegate/train": "sha256:abc"},
        {**DIGESTS, "tunegate/train": DIGESTS["tunegate/train"] + "\n"},
        {**DIGESTS, "tunegate/train": None},
        ["sha256"],
    ],
)
def test_what_is_no_digest_of_an_image_is_refused(content: Any, tmp_path: Path) -> None:
    output = tmp_path / "compiled.yaml"
    path = written(tmp_path, content)
    asked = CliRunner().invoke(app, ["compile", "--output", str(output), "--image-digests", str(path)])
    assert asked.exit_code == 2 and not output.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_digests(tmp_path / "absent.json")
