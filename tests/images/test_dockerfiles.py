"""Dockerfiles: what no image may have, and what each must. No engine builds them here; they are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.contracts.images import ALL_IMAGES, IMAGES, QUANTIZERS, image_name
from tunegate.quantize.legacy import environment as legacy
from tunegate.serving import environment as serving
from tunegate.serving import isolation

FOLDER = Path(__file__).parents[2] / "images"
DOCKERFILES = sorted(FOLDER.glob("*/Dockerfile"))
HADOLINT = Path(sys.executable).with_name("hadolint")

FOLDERS = [image_name(reference).removeprefix("tunegate/") for reference in ALL_IMAGES]

each = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Every instruction in order: its name and the rest, continued lines joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined)]


def last_stage(path: Path) -> list[tuple[str, str]]:
    found = instructions(path)
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


@each
def test_hadolint_finds_nothing(path: Path) -> None:
    asked = subprocess.run([HADOLINT, path], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stdout


def test_the_readmes_table_is_that_of_the_code() -> None:
    """A person reads here which image a step runs in, and which are to be built."""
    text = (FOLDER / "README.md").read_text("utf-8")
    told = {
        image: set(re.findall(r"\w+", steps.partition(";")[0].replace("quantize by ", "")))
        for image, steps in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    }
    table: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    for step, reference in {**IMAGES, **QUANTIZERS}.items():
        if step != "quantize":  # by backend
            table[image_name(reference).removeprefix("tunegate/")].add(step)
    assert told == table


def test_every_image_that_a_step_names_has_a_dockerfile() -> None:
    assert set(FOLDERS) == {path.parent.name for path in DOCKERFILES}


@each
def test_the_base_has_no_default_so_that_none_is_built_on_a_tag(path: Path) -> None:
    """build.sh refuses what is not pinned by digest."""
    found = instructions(path)
    assert found[0] == ("ARG", "PYTHON_IMAGE")
    assert {rest.split(" ")[0] for name, rest in found if name == "FROM"} == {"${PYTHON_IMAGE}"}


@each
def test_the_image_runs_as_a_numbered_user_who_is_not_root(path: Path) -> None:
    """Kubernetes' runAsNonRoot refuses a user by name."""
    users = [rest for name, rest in last_stage(path) if name == "USER"]
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])


@each
def test_no_byte_of_an_index_comes_in_without_a_hash(path: Path) -> None:
    fetched = [
        command
        for name, rest in instructions(path)
        if name == "RUN"
        for command in rest.split("&&")
        if re.search(r"\bpip\b.*\b(install|wheel)\b", command) and "--no-index" not in command
    ]
    assert fetched
    assert [command for command in fetched if not {"--require-hashes", "--no-deps"} <= set(command.split())] == []


@each
def test_nothing_is_added_from_an_address_and_no_package_of_the_system_comes_in(path: Path) -> None:
    assert [rest for name, rest in instructions(path) if name == "ADD"] == []
    ran = " ".join(rest for name, rest in instructions(path) if name == "RUN")
    assert not re.search(r"\b(curl|wget|apt|apt-get|git)\b", ran)


@each
def test_no_build_tool_reaches_the_image(path: Path) -> None:
    copied = [rest for name, rest in last_stage(path) if name == "COPY"]
    assert [rest for rest in copied if not rest.startswith("--from=built /opt/")] == []


@each
def test_every_file_that_is_copied_is_there_and_reaches_the_build(path: Path) -> None:
    root = FOLDER.parent
    sent = [line[1:] for line in (root / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for name, rest in instructions(path):
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (root / source).exists(), source
                assert any(Path(source).match(pattern) for pattern in sent), source


@pytest.mark.parametrize(
    ("image", "variable", "place"),
    [
        ("serve", serving.PYTHON_VARIABLE, "/opt/vllm"),
        ("quantize_legacy", legacy.PYTHON_VARIABLE, "/opt/autoawq"),
    ],
)
def test_the_steps_find_the_environment_beside_theirs_and_torch_lies_once(
    image: str, variable: str, place: str
) -> None:
    path = FOLDER / image / "Dockerfile"
    stage = last_stage(path)
    assert ("ENV", f"{variable}={place}/bin/python") in stage
    assert ("COPY", f"--from=built {place} {place}") in stage
    (shared,) = re.findall(r"python share\.py torch\.lock (\S+) (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    assert set(shared) == {"/opt/venv", place}


def test_the_compiler_is_found_where_triton_looks_for_one() -> None:
    """vLLM sees our PATH, and of it takes the first gcc."""
    stage = last_stage(FOLDER / "serve/Dockerfile")
    copied = [rest for name, rest in instructions(FOLDER / "serve/Dockerfile") if name == "COPY"]
    assert "images/serve/gcc /opt/vllm/compiler/gcc" in copied
    assert any(name == "ENV" and ":/opt/vllm/compiler:$PATH" in rest for name, rest in stage)
    assert os.access(FOLDER / "serve/gcc", os.X_OK) and "PATH" in isolation.PASSED_ON


@pytest.mark.parametrize("given", ["", "python:3.11-slim", "python@sha256:abc"])
def test_an_image_is_never_built_on_a_base_without_a_digest(given: str) -> None:
    asked = subprocess.run(
        [FOLDER / "build.sh", "registry.example.com/", "/nowhere/digests.json"],
        env={"PATH": "/usr/bin:/bin", "PYTHON_IMAGE": given}, capture_output=True, text=True,
    )  # fmt: skip
    assert asked.returncode == 2 and "by digest" in asked.stderr


def test_the_build_makes_every_image_that_a_step_names() -> None:
    """Else the file that it writes is one that `tunegate compile --image-digests` refuses."""
    (built,) = re.findall(r"images=\(([a-z_ ]+)\)", (FOLDER / "build.sh").read_text("utf-8"))
    assert set(built.split()) == set(FOLDERS)
