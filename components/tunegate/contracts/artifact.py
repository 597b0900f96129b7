"""How a step writes its artifact: whole or not at all, once for the same work."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import OutputExistsError
from tunegate.contracts.files import sync_folder
from tunegate.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest, verify, work_digest, write_manifest
from tunegate.contracts.room import no_room, why_no_room

#: Fills an artifact's folder. It may hand back entries of files that it hashed while it wrote them: those are not read
#: again.
Build = Callable[[Path], Iterable[FileEntry] | None]


def produce(
    output: Path,
    *,
    kind: str,
    parents: Mapping[str, str],
    settings: Mapping[str, Any],
    build: Build,
    volatile: Iterable[str] = (),
) -> Manifest:
    """Builds an artifact folder at ``output``.

    ``build`` fills ``<output>.partial``; the manifest is written into it and the folder is renamed, so ``output`` is
    complete whenever it exists. The same work that is there already is verified and kept. A killed attempt is replaced.

    Args:
        volatile: files that tell of the run and are left out of the content digest, where ``build`` writes any.

    Raises:
        OutputExistsError: when ``output`` exists and was made from other inputs or settings, or by something else.
        ArtifactError: when ``output`` is there from the same work and its files have changed since.
        RunError: when there is no room for it.
    """
    refuse_foreign_output(output, kind=kind, parents=parents, settings=settings)
    if (output / MANIFEST_NAME).is_file():
        return verify(output, kind=kind)
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        hashed = build(partial) or ()
        manifest = write_manifest(
            partial, kind=kind, parents=parents, settings=settings, volatile=volatile, hashed=hashed
        )
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if why := why_no_room(error):
            raise no_room(output, why) from error
        raise
    if output.exists():  # an empty folder that an orchestrator made beforehand
        output.rmdir()
    partial.rename(output)
    sync_folder(output.parent)
    return manifest


def refuse_foreign_output(output: Path, *, kind: str, parents: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Refuses an ``output`` that something else made, before anything expensive starts.

    Raises:
        OutputExistsError: see :func:`produce`.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    remedy = f"choose another output, or remove {output} yourself"
    if not (output / MANIFEST_NAME).is_file():
        raise OutputExistsError(
            f"{output} exists and is no tunegate artifact.",
            seen="a file or folder without manifest.json",
            expected="no such path, an empty folder, or the same work done before",
            remedy=remedy,
        )
    manifest = verify(output)
    wanted = work_digest(kind, parents, settings)
    if manifest.work_digest != wanted:
        differs = [name for name in parents if manifest.parents.get(name) != parents[name]]
        differs += [f"settings.{name}" for name in settings if manifest.settings.get(name, ...) != settings[name]]
        raise OutputExistsError(
            f"{output} exists and was made from other inputs or settings.",
            seen=f"{manifest.kind} of work {manifest.work_digest[:12]}",
            expected=f"{kind} of work {wanted[:12]}",
            remedy=remedy,
            items=[f"{name} differs" for name in differs],
        )
