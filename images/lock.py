"""Prints the lock of an image, with the hash of every file: ``python images/lock.py train``.

Versions are those of a lock that is tested here, images/local's for most, so that none is chosen twice. pip's own
configuration is left out, for it may name indexes of this machine: a hash is that of the file which PyPI has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent

#: The lock of torch's CUDA build, which every image with torch installs beside its own.
TORCH = IMAGES / "torch"

#: Folder → the lock whose versions it has, where that is not images/local.
TESTED = {"vllm": "serve", "autoawq": "quantize_legacy"}

#: torch and what only its CUDA build needs, among the dependencies of torch.
_CUDA = re.compile(r"torch|triton|cuda-.*|nvidia-.*")

#: What a lock never holds: the package itself is built from the checkout.
_OWN = "tunegate"


def resolve(folder: Path) -> list[Mapping[str, Any]]:
    """What pip would install for an image's requirements.in, nothing being installed."""
    with tempfile.TemporaryDirectory() as scratch:
        report, versions = Path(scratch) / "report.json", Path(scratch) / "versions.txt"
        versions.write_text("\n".join(f"{name}=={version}" for name, version in tested(folder).items()), "utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(versions)]
        command += ["--requirement", str(folder / "requirements.in")]
        subprocess.run(command, check=True, cwd=IMAGES.parent, env=_index_alone(os.environ))
        found: list[Mapping[str, Any]] = json.loads(report.read_text("utf-8"))["install"]
    return found


def tested(folder: Path) -> dict[str, str]:
    """Package → the version that a folder's lock may hold of it: the one tested here; of torch's the one for all."""
    versions = pins(IMAGES / TESTED.get(folder.name, "local"))
    for name in named(folder / "otherwise.txt"):
        del versions[name]
    return versions if folder == TORCH else {**versions, **pins(TORCH)}


def pins(folder: Path) -> dict[str, str]:
    """Package → its version in the lock of a folder."""
    lock = (folder / "requirements.lock").read_text("utf-8")
    found = re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
    return {canonical(name): version for name, version in found}


def named(path: Path) -> set[str]:
    """The packages that a list names; none where there is no list."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {canonical(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")}


def _index_alone(environment: Mapping[str, str]) -> dict[str, str]:
    local = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
    kept = {name: value for name, value in environment.items() if name not in local}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(found: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Distribution → its line of a lock, from pip's report.

    Raises:
        SystemExit: for a file that comes from no index, or without a hash.
    """
    lines = {}
    for one in found:
        name, source = canonical(one["metadata"]["name"]), one["download_info"]
        if name == _OWN:
            continue
        digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
        if not source["url"].startswith("https://") or not digest:
            raise SystemExit(f"{name} has no hash, or comes from no index: {source['url']}")
        lines[name] = f"{name}=={one['metadata']['version']} --hash=sha256:{digest}"
    return lines


def apart(lines: Mapping[str, str], folder: Path) -> list[str]:
    """The lines of one folder's lock: torch's CUDA build for the one, all but that for the others.

    Raises:
        SystemExit: when the image would get another file of torch's build than the one that is locked for all.
    """
    if folder == TORCH:
        return [lines[name] for name in sorted(lines) if _CUDA.fullmatch(name)]
    of_torch = set(TORCH.joinpath("requirements.lock").read_text("utf-8").splitlines())
    names = pins(TORCH).keys()
    if others := [lines[name] for name in names & lines.keys() if lines[name] not in of_torch]:
        raise SystemExit(f"images/torch locks something else: make lock-torch first. {others}")
    return [lines[name] for name in sorted(lines.keys() - names)]


def main(folder: Path) -> None:
    """Prints the lock."""
    print((folder / "header.txt").read_text("utf-8"))
    print("\n".join(apart(locked(resolve(folder)), folder)))


if __name__ == "__main__":
    main(IMAGES / sys.argv[1])
