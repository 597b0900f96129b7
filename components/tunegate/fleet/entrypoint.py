"""``python -m tunegate.fleet.entrypoint``: what the containers of a fleet run on a cluster.

::

    fetch   an init container: copies the fleet and its base from where they lie, and hashes every byte
    serve   hashes what it is given, and becomes vLLM with every adapter under the digest of its bytes
    check   a start-up probe: each adapter must answer as its PEFT model did; until then the pod is not ready

Kubernetes asks a start-up probe many times, since a server takes long to load. An answer that is wrong once is wrong:
it is noted in the scratch folder, which outlives a container, the server ends, and none starts there again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, GateRefused, InputError, SettingsError, TunegateError
from tunegate.contracts.manifest import input_digest, verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import parse_settings
from tunegate.fleet.build import KIND, PROBES, BuiltFleet, read_built
from tunegate.fleet.engine import fleet_engine
from tunegate.serving.client import Client
from tunegate.serving.engine import command_line, process_environment
from tunegate.serving.environment import find_environment
from tunegate.serving.flags import ServingFlags
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import check_probes, read_probes
from tunegate.storage.open import open_storage

TASK = "fleet"

#: Below the folder that the containers share.
FLEET, BASE = "fleet", "base"

#: In the scratch folder: what was wrong, and who serves.
_WRONG, _SERVER = "tunegate-fleet-wrong", "tunegate-fleet-server"


def fetch(into: Path, *, fleet_uri: str, base_uri: str, fleet: str) -> BuiltFleet:
    """Copies a fleet and its base below ``into``, and lets nothing pass that is not what was built.

    Args:
        into: a folder; what an earlier try left there is replaced.
        fleet_uri, base_uri: where the two lie: folders or gs://.
        fleet: the fleet's content digest.

    Raises:
        InputError: when something lies elsewhere, or is another one.
    """
    for name, uri in ((FLEET, fleet_uri), (BASE, base_uri)):
        parent, _, last = uri.rstrip("/").rpartition("/")
        if not parent or parent.endswith(":/"):
            raise InputError(
                f"{uri} names no folder.",
                seen=uri,
                expected="a folder in a bucket, such as gs://bucket/fleets/mine",
                remedy="copy the fleet and its base into folders of the bucket",
            )
        say(TASK, f"fetching {uri}")
        shutil.rmtree(into / name, ignore_errors=True)
        open_storage(parent).download_folder(last, into / name)
    return verified(into, fleet)


def verified(folder: Path, fleet: str) -> BuiltFleet:
    """The fleet in ``folder``, every byte of it and of its base hashed.

    Raises:
        ArtifactError: when a file was changed, or it is another fleet or another base.
    """
    say(TASK, f"verifying {folder}")
    digest = verify(folder / FLEET, kind=KIND).content_digest
    built = read_built(folder / FLEET)
    base = input_digest(folder / BASE)
    for what, seen, expected in (("fleet", digest, fleet), ("base", base, built.base)):
        if seen != expected:
            raise ArtifactError(
                f"The {what} is another one than was to be served.",
                seen=seen,
                expected=expected,
                remedy="look at what lies at its address, and render the manifest again",
            )
    return built


def serve(folder: Path, *, fleet: str, flags: ServingFlags, host: str, port: int, scratch: Path) -> None:
    """Becomes vLLM.

    Raises:
        GateRefused: when an adapter answered otherwise here before.
        ArtifactError: as :func:`verified`.
        SettingsError: when there is no vLLM, or the flags cannot be used.
    """
    refuse_wrong_before(scratch)
    built, where = verified(folder, fleet), find_environment()
    engine = fleet_engine(folder / FLEET, built, folder / BASE, flags, where)
    engine = dataclasses.replace(engine, host=host, port=port)
    command = command_line(engine, where, served_name=built.base, port=port)
    say(TASK, f"starting vLLM {where.vllm_version} with {len(built.adapters)} adapters")
    (scratch / _SERVER).write_text(str(os.getpid()), "utf-8")
    os.execve(command[0], command, process_environment(engine, os.environ))


def check(folder: Path, *, url: str) -> list[str]:
    """Asks every adapter that a server should have what its PEFT model answered.

    Returns:
        What is wrong; empty when each answers as it should.

    Raises:
        RunError: when the server does not answer yet.
    """
    built, client = read_built(folder / FLEET), Client(url)
    served = {model.name for model in client.models()}
    wrong = [f"{each.alias}: {each.served} is not served" for each in built.adapters if each.served not in served]
    if wrong or not (folder / FLEET / PROBES).is_dir():
        return wrong
    for each in built.adapters:
        probes = read_probes(folder / FLEET / PROBES / f"{each.alias}.json")
        found = check_probes(client, each.served, probes, AnswerLimits(**each.limits))
        wrong += [f"{each.alias}: {reason}" for reason in found.reasons]
    return wrong


def refuse_wrong_before(scratch: Path) -> None:
    """Raises GateRefused when an adapter answered otherwise in this pod: no number of tries makes it right."""
    try:
        wrong = (scratch / _WRONG).read_text("utf-8")
    except FileNotFoundError:
        return
    raise GateRefused(
        "An adapter answered otherwise here: nothing is served from this pod.",
        seen=wrong,
        expected="each adapter answers as its PEFT model did",
        remedy="compare accelerator and vLLM with those of the build; then remove the pod, or render another fleet",
    )


def end_wrong(scratch: Path, wrong: Sequence[str]) -> None:
    """Notes what is wrong, and ends the server that :func:`serve` became."""
    (scratch / _WRONG).write_text("; ".join(wrong), "utf-8")
    with contextlib.suppress(OSError, ValueError):  # it may have ended by itself
        os.kill(int((scratch / _SERVER).read_text("utf-8")), signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Does what a container is for; returns its exit code, unless it becomes vLLM."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "fetch":
            fetch(given.folder, fleet_uri=given.fleet_uri, base_uri=given.base_uri, fleet=given.fleet)
        elif given.command == "serve":
            flags = parse_settings(ServingFlags, _flags(given.flags), where="--flags")
            serve(given.folder, fleet=given.fleet, flags=flags, host=given.host, port=given.port, scratch=given.scratch)
        else:
            refuse_wrong_before(given.scratch)
            if wrong := check(given.folder, url=given.url):
                end_wrong(given.scratch, wrong)
                print("\n".join(wrong), file=sys.stderr)
                return 3
    except TunegateError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _flags(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(
            "The flags of production cannot be read.",
            seen=f"{text!r}: {error}",
            expected="a JSON object, as the manifest gives it",
            remedy="render the manifest again",
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunegate.fleet.entrypoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "serve", "check"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, required=True, help="the folder that the containers share")
        if name != "fetch":
            command.add_argument("--scratch", type=Path, default=Path("/tmp"), help="what outlives a container")
        if name != "check":
            command.add_argument("--fleet", required=True, help="the fleet's content digest")
    commands.choices["fetch"].add_argument("--fleet-uri", required=True, help="where the fleet lies")
    commands.choices["fetch"].add_argument("--base-uri", required=True, help="where its base lies")
    commands.choices["serve"].add_argument("--flags", default="{}", help="the section 'serving' of the recipe, as JSON")
    commands.choices["serve"].add_argument("--host", default="0.0.0.0", help="where it listens")
    commands.choices["serve"].add_argument("--port", type=int, default=8080, help="where it listens")
    commands.choices["check"].add_argument("--url", default="http://127.0.0.1:8080", help="the server")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
