"""Checkpoints of a run: kept where another machine finds them, complete or absent, verified before they are loaded.

Below ``checkpoint_uri`` every work (base, data, settings) has a folder of its own, so that a checkpoint never continues
another run. In it lies a folder for each step that was kept, with its manifest written last.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ArtifactError, Interrupted, TunegateError
from tunegate.contracts.files import files_below, pretty_json, sha256_file
from tunegate.contracts.manifest import tool_versions
from tunegate.contracts.progress import say
from tunegate.storage.interface import Source, Storage
from tunegate.storage.open import open_storage

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_MANIFEST_KEY = re.compile(rf"step-(?P<step>\d+)/{re.escape(MANIFEST_NAME)}")

#: An object that is written and removed, to see whether that can be done.
_PROBE = "probe"

#: The last checkpoint and the one before it, for when the last turns out to be damaged.
KEPT = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one work.

    Attributes:
        storage: where they lie.
        work: the digest of the work; the folder's name.
    """

    storage: Storage
    work: str

    def keep(self, folder: Path, step: int) -> bool:
        """Keeps what the trainer wrote into ``folder`` as the checkpoint of ``step``, and removes older ones.

        Returns:
            Whether it is kept. A storage that fails does not end the run: that is said, and the next one is tried.
        """
        digests = {name: sha256_file(folder / name) for name in files_below(folder)}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "work_digest": self.work,
            "step": step,
            "tools": tool_versions(),
            "files": digests,
        }
        (folder / MANIFEST_NAME).write_bytes(pretty_json(manifest))
        digests[MANIFEST_NAME] = sha256_file(folder / MANIFEST_NAME)
        files = {name: Source(folder / name, digest) for name, digest in digests.items()}
        try:
            self.storage.upload_folder(files, self._place(step), last=MANIFEST_NAME)
            for older in self.steps()[:-KEPT]:
                self._remove(older)
        except (TunegateError, OSError) as error:
            say("train", f"the checkpoint of step {step} could not be kept: {_one_line(error)}")
            return False
        return True

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, rising."""
        found = (_MANIFEST_KEY.fullmatch(key.removeprefix(f"{self.work}/")) for key in self.storage.list(self.work))
        return sorted(int(match["step"]) for match in found if match)

    def fetch_last(self, scratch: Path) -> Path | None:
        """The last checkpoint that verifies, copied below ``scratch``; None when there is none.

        One that does not verify is removed, so that the run can write it anew.
        """
        for step in reversed(self.steps()):
            folder = scratch / f"checkpoint-{step}"
            try:
                self.storage.download_folder(self._place(step), folder)
                self._refuse_damaged(folder, step)
            except ArtifactError as error:
                say("train", f"the checkpoint of step {step} is damaged and left out: {_one_line(error)}")
                shutil.rmtree(folder, ignore_errors=True)
                self._remove(step)
                continue
            _say_other_versions(folder, step)
            return folder
        return None

    def remove(self, *, but_last: int = 0) -> None:
        """Removes them, but the last few: the run is done. What cannot be removed stays, and is said."""
        try:
            steps = self.steps()
            for step in steps[: len(steps) - but_last]:
                self._remove(step)
        except (TunegateError, OSError) as error:
            say("train", f"checkpoints stay below {self.storage.uri}/{self.work}: {_one_line(error)}")

    def _refuse_damaged(self, folder: Path, step: int) -> None:
        try:
            manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
            stated = dict(manifest["files"])
            foreign = (manifest["schema_version"], manifest["work_digest"], manifest["step"]) != (
                SCHEMA_VERSION, self.work, step,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            stated, foreign = {}, True
            seen = f"{type(error).__name__} in {MANIFEST_NAME}"
        else:
            seen = f"a {MANIFEST_NAME} of other work or another step"
        present = {name: sha256_file(folder / name) for name in files_below(folder) if name != MANIFEST_NAME}
        wrong = sorted(name for name in present.keys() | stated.keys() if present.get(name) != stated.get(name))
        if foreign or wrong:
            raise ArtifactError(
                f"The checkpoint of step {step} is not what its manifest says.",
                seen=seen if foreign else ", ".join(wrong),
                expected="every file as it was written",
                remedy="nothing: the one before it is used",
                items=wrong,
            )

    def _place(self, step: int) -> str:
        return f"{self.work}/step-{step:08d}"

    def _remove(self, step: int) -> None:
        self.storage.remove_folder(self._place(step), first=MANIFEST_NAME)


def open_checkpoints(uri: str, work: str) -> Checkpoints | None:
    """The checkpoints of a work at an address; None where no address was given.

    What killed attempts left half-written there is removed: one process at a time does a work.

    Raises:
        InputError: for an address that cannot be used.
        RunError: for one that does not answer, or cannot be written.
    """
    if not uri:
        return None
    found = Checkpoints(open_storage(uri), work)
    # A place that cannot be used is told now and not after the first hour.
    found.storage.write(f"{work}/{_PROBE}", b"", if_generation_match=None)
    found.storage.delete(f"{work}/{_PROBE}")
    found.storage.remove_unfinished(work, last=MANIFEST_NAME)
    return found


def interrupted(step: int, last: int | None, *, place: bool) -> Interrupted:
    """What an interrupted run ends with.

    Args:
        step: the last step that was finished.
        last: the step of the last checkpoint; None where there is none.
        place: whether the run has a place for checkpoints.
    """
    if last is not None:
        after = "this step" if last == step else f"step {last}, the last that was kept"
        remedy = f"run it again: it goes on after {after}"
    else:
        remedy = "run it again" if place else "run it again; give a checkpoint_uri, and it will go on where it was"
    return Interrupted(
        f"Training was interrupted after step {step}.",
        seen="a request to stop (SIGTERM or SIGINT)",
        expected="a run to its end",
        remedy=remedy,
    )


def _say_other_versions(folder: Path, step: int) -> None:
    """Other versions may compute another last bit; that is told, and no reason to begin again."""
    before, now = json.loads((folder / MANIFEST_NAME).read_text("utf-8")).get("tools", {}), tool_versions()
    other = [f"{name} {before.get(name)} → {now.get(name)}" for name in now if before.get(name) != now[name]]
    if other:
        say("train", f"the checkpoint of step {step} was written with other versions: {', '.join(other)}")


def _one_line(error: BaseException) -> str:
    seen = f" ({error.seen})" if isinstance(error, TunegateError) else ""
    return f"{' '.join(str(error).splitlines()[:1])}{seen}"
