"""Inputs that a cluster can read and that stay what they are: a hub's by commit, a folder's by an absolute path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tunegate.contracts.errors import InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")

#: Run-form parameters that may name something of a hub.
HUB_INPUTS = ("base_model", "dataset")

#: Those that name a place that a run writes to.
_WRITTEN = ("registry", "reuse_evaluations", "checkpoint_uri")


def refuse_unpinned(addresses: Mapping[str, str]) -> None:
    """Lets addresses through that mean the same bytes to each pod of each run.

    Args:
        addresses: run-form parameter → address.

    Raises:
        InputError: naming each hub name without a commit, and each path that only this machine knows.
    """
    wrong = [f"{name}: {told}" for name in HUB_INPUTS if (told := _wrong_input(addresses.get(name, "")))]
    wrong += [
        f"{name}: {address!r} is no absolute path and no gs:// address"
        for name in _WRITTEN
        if (address := addresses.get(name, "")) and not address.startswith(("/", "gs://", "file:///"))
    ]
    if wrong:
        raise InputError(
            "What the run reads or writes is not the same for every pod and every run.",
            seen=f"{len(wrong)} address(es)",
            expected=f"{' and '.join(HUB_INPUTS)}: an absolute path on a volume of the cluster, or org/name@COMMIT of "
            f"a hub, the whole commit: a branch or tag moves; {', '.join(_WRITTEN)}: such a path, or gs://bucket/folder",
            remedy="write the commit that the hub's page shows (40 hexadecimal digits) behind '@', and mount folders "
            "with `volumes` of the cluster file",
            items=wrong,
        )


def commit_of(address: str) -> str | None:
    """The commit that a hub name is pinned to; None where it is no hub name, or names no commit."""
    name, _, revision = address.partition("@")
    return revision if _HUB.fullmatch(name) and _COMMIT.fullmatch(revision) else None


def _wrong_input(address: str) -> str:
    if not address or address.startswith("/") or commit_of(address):
        return ""
    name, at, revision = address.partition("@")
    if at and _HUB.fullmatch(name):
        return f"{address!r} names {revision!r}, which is no commit"
    return f"{address!r} is no absolute path, and names no commit of a hub"
