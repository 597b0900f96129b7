"""The README: every command in it is run by a test, and its recipe is one that the product takes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.images import CONTROL, IMAGES, image_name
from tunegate_pipelines.resources import REQUESTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
RECIPE = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
#: The task of a user's own that the README shows: its file and its rows.
TASK = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "# tasks/capitals.yaml" in block)
(TASK_ROWS,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

#: Commands that take minutes, with the file that runs them and the words in it that do.
RUN_ELSEWHERE = {
    "make demo": ("tests/e2e/test_demo.py", '"demo.yaml"'),
    "make test": (".ci/run", "make test"),
    ".venv/bin/tunegate run pipelines/tunegate_pipelines/recipes/demo-wrong.yaml": (
        "tests/e2e/test_refusal.py",
        '"demo-wrong.yaml"',
    ),
    ".venv/bin/tunegate run recipe.yaml --output runs/mine": (
        "tests/wiring/test_finetune.py",
        '"run", str(path), "--output"',
    ),
    ".venv/bin/tunegate run mine/recipe.yaml --output mine/run": (
        "tests/wiring/test_init.py",
        '"run", "mine/recipe.yaml", "--output", "mine/run"',
    ),
    ".venv/bin/tunegate deploy registry champion --recipe recipe.yaml": (
        "tests/deploy/test_supervisor.py",
        '"champion", "--folder", str(self.folder), "--port", "0", "--recipe"',
    ),
    ".venv/bin/tunegate schedule schedules.yaml --cluster cluster.yaml": (
        "tests/pipelines/kfp/test_schedule.py",
        '"schedule", str(home / "schedules.yaml"), "--cluster"',
    ),
    ".venv/bin/tunegate submit recipe.yaml --cluster cluster.yaml --model llama-3-8b": (
        "tests/pipelines/kfp/test_submit.py",
        '"submit", str(home / "recipe.yaml"), "--cluster"',
    ),
    ".venv/bin/tunegate fleet plan fleet.yaml": (
        "tests/fleet/test_plan.py",
        '"fleet", "plan", str(root / "fleet.yaml")',
    ),
    ".venv/bin/tunegate fleet serve fleet.yaml": ("tests/fleet/test_source.py", '"tunegate", "fleet", "serve"'),
    ".venv/bin/tunegate deployed": ("tests/deploy/test_supervisor.py", '"tunegate", "deployed"'),
    ".venv/bin/tunegate costs measure http://127.0.0.1:8000 --model champion --rate 2 --output costs/champion.json": (
        "tests/costs/test_measure.py",
        '"costs", "measure", server.url',
    ),
    ".venv/bin/tunegate costs page costs/champion.json": ("tests/costs/test_measure.py", '"costs", "page", *files'),
}


INIT = next(command for command in COMMANDS if "tunegate init" in command)


def _row(number: int) -> dict[str, str]:
    """A message and the team that answers it, unlike every other."""
    said = " ".join(
        f"{word}{number * place % 997}" for place, word in enumerate(("order", "kettle", "street", "bill"), 3)
    )
    return {"prompt": f"Which team? {said}", "completion": ("refund", "delivery")[number % 2]}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN_ELSEWHERE])
def test_command_of_the_readme_works(
    command: str,
    registry: tuple[str, list[str]],
    tiny_base: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the registry lies, as the recipe says
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/capitals.yaml").write_text(TASK, "utf-8")
    (tmp_path / "tasks/capitals.jsonl").write_text(TASK_ROWS, "utf-8")
    shutil.copytree(tiny_base, tmp_path / "models/my-base")
    for run in ("runs/mine", "mine/run"):
        shutil.copytree(tiny_dataset, tmp_path / run / "kfp/dataset")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(_row(number)) + "\n" for number in range(160)), "utf-8")
    if "mine/recipe.yaml" in command:
        assert CliRunner().invoke(app, shlex.split(INIT)[1:]).exit_code == 0
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/tunegate"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_longer_commands_of_the_readme_are_run_where_the_table_says() -> None:
    assert set(COMMANDS) >= RUN_ELSEWHERE.keys()
    for command, (place, word) in RUN_ELSEWHERE.items():
        assert word in (ROOT / place).read_text("utf-8"), command


def test_make_demo_runs_the_recipe_that_the_end_to_end_test_runs() -> None:
    assert re.search(r"tunegate run \$\(RECIPES\)/demo\.yaml", (ROOT / "Makefile").read_text("utf-8"))


def test_the_readmes_recipe_has_the_shape_of_the_shipped_ones() -> None:
    assert yaml.safe_load(RECIPE).keys() <= {
        "run",
        "prepare",
        "train",
        "merge",
        "quantize",
        "evaluate",
        "gate",
        "approve",
        "promote",
        "signing",
    }


def test_the_table_of_what_runs_where_is_what_is_compiled() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d) \|", README, re.MULTILINE)
    told = {step: (f"tunegate/{image}", int(accelerators)) for step, image, accelerators in rows}
    assert told == {step: (image_name(IMAGES[step]), _accelerators(step)) for step in told}
    small = {step for step, image in IMAGES.items() if image == CONTROL and not _accelerators(step)}
    assert IMAGES.keys() - told.keys() <= small, "a step that takes more than a core is not in the table"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert len(links) > 15
    for path, _, anchor in (link.partition("#") for link in links if "://" not in link):
        target = ROOT / (path or "README.md")
        assert target.exists(), path
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{path}#{anchor}"


def _accelerators(step: str) -> int:
    return REQUESTS[step].accelerators
