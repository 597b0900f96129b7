"""Two environments of an image that hold torch once: what is shared is the lock's, and nothing else can be imported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "images/share.py"

Environments = tuple[Path, Path]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("share", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def holds(script: ModuleType) -> Callable[[Path, str], None]:
    """Puts a distribution of one package, as pip would, into an environment."""

    def put(environment: Path, name: str) -> None:
        place, folder = script.site_packages(environment), name.replace("-", "_")
        (place / folder).mkdir()
        (place / folder / "__init__.py").write_text(f"NAME = {name!r}\n", "utf-8")
        info = place / f"{folder}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
        record = (
            f"{folder}/__init__.py,,",
            f"{info.name}/METADATA,,",
            f"../../../bin/{name},,",
            f"{info.name}/RECORD,,",
        )
        (info / "RECORD").write_text("\n".join(record), "utf-8")

    return put


@pytest.fixture
def environments(tmp_path: Path, holds: Callable[[Path, str], None]) -> Environments:
    """One that holds more than the lock names, and one that holds something else."""
    for name in ("holder", "user"):
        venv.create(tmp_path / name, symlinks=True)
    for name in ("big-one", "other"):
        holds(tmp_path / "holder", name)
    return tmp_path / "holder", tmp_path / "user"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "torch.lock"
    path.write_text("# a lock\n\nbig-one==1.0 --hash=sha256:00\n", "utf-8")
    return path


def imported(environment: Path, name: str) -> bool:
    command = [
        environment / "bin/python",
        "-c",
        f"import {name}; from importlib import metadata; metadata.version({name!r})",
    ]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_only_what_the_lock_names_is_shared(environments: Environments, lock: Path) -> None:
    """The other packages of one environment clash with those of the other: that is why there are two."""
    holder, user = environments
    subprocess.run([sys.executable, SCRIPT, lock, holder, user], check=True, capture_output=True)
    assert imported(user, "big_one") and imported(holder, "other")
    assert not imported(user, "other")


def test_a_package_that_the_holder_lacks_is_named(script: ModuleType, environments: Environments, lock: Path) -> None:
    lock.write_text("big-one==1.0\nabsent==2.0\n", "utf-8")
    with pytest.raises(SystemExit, match="absent"):
        script.share(lock, *environments)


def test_nothing_of_the_other_environment_is_covered(
    script: ModuleType, environments: Environments, lock: Path, holds: Callable[[Path, str], None]
) -> None:
    holds(environments[1], "big-one")
    with pytest.raises(SystemExit, match="has big_one"):
        script.share(lock, *environments)
