"""Lets one environment use what another one holds of a lock: ``python share.py torch.lock /opt/vllm /opt/venv``.

An image with two environments, whose other packages clash, so holds torch and its gigabytes of CUDA libraries once.
Links and no path file: of the first nothing but the lock's packages may be imported in the second.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path


def site_packages(environment: Path) -> Path:
    """Where a virtual environment's packages lie."""
    (found,) = environment.glob("lib/python3.*/site-packages")
    return found


def locked(lock: Path) -> list[str]:
    """The names in a lock."""
    return re.findall(r"^([\w.-]+)==", lock.read_text("utf-8"), re.MULTILINE)


def top_names(distribution: metadata.Distribution) -> set[str]:
    """The files and folders of site-packages that hold a distribution; what it puts into ``bin`` is not among them."""
    return {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}


def share(lock: Path, holder: Path, user: Path) -> list[str]:
    """Links what ``holder`` has of the lock's packages into ``user``; returns the names that were linked.

    Raises:
        SystemExit: when the holder lacks a package, or the other environment has something of the same name.
    """
    source, target = site_packages(holder), site_packages(user)
    held = {one.metadata["Name"].lower().replace("_", "-"): one for one in metadata.distributions(path=[str(source)])}
    if missing := [name for name in locked(lock) if name not in held]:
        raise SystemExit(f"{holder} lacks {', '.join(missing)}, which {lock} names")
    names = sorted({top for name in locked(lock) for top in top_names(held[name])} - {"__pycache__"})
    if taken := [name for name in names if (target / name).exists()]:
        raise SystemExit(f"{user} has {', '.join(taken)} already")
    for name in names:
        (target / name).symlink_to(source / name)
    return names


if __name__ == "__main__":
    print("\n".join(share(*map(Path, sys.argv[1:]))))
