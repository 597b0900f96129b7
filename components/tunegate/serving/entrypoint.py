"""``python -m tunegate.serving.entrypoint``: what a container runs to serve files that somebody else put there.

Every byte is hashed first, and vLLM starts under the digest that was computed: an answer from that name is an answer of
those bytes, whatever the object says that started the container. Then this process becomes vLLM, so that signals and
the exit code are vLLM's own. Standard library only, besides vLLM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tunegate.contracts.errors import ArtifactError, SettingsError, TunegateError
from tunegate.contracts.manifest import verify
from tunegate.contracts.progress import say
from tunegate.contracts.settings import parse_settings
from tunegate.serving.engine import command_line, process_environment
from tunegate.serving.environment import PYTHON_VARIABLE, ServeEnvironment, find_environment
from tunegate.serving.flags import ServingFlags, production_engine

TASK = "serve"


def prepared(arguments: Sequence[str], where: ServeEnvironment) -> tuple[list[str], dict[str, str]]:
    """vLLM's command line and environment for files that were verified.

    Args:
        arguments: as the container is given them.
        where: the environment that vLLM lies in.

    Raises:
        ArtifactError: when a file is not what the manifest says, or the model is not the expected one.
        SettingsError: when the flags cannot be used.
    """
    given = _parser().parse_args(arguments)
    say(TASK, f"verifying {given.model}")
    digest = verify(given.model, kind="quantized").content_digest
    if given.expect and digest != given.expect:
        raise ArtifactError(
            "The files are another model than this container was to serve.",
            seen=digest,
            expected=given.expect,
            remedy="look at the storageUri, and at what lies there: `tunegate registry verify`",
        )
    flags = parse_settings(ServingFlags, _flags(given.flags), where="--flags")
    engine = production_engine(flags, given.model, where)
    engine = dataclasses.replace(engine, further_names=tuple(given.also), host=given.host, port=given.port)
    say(TASK, f"starting vLLM {where.vllm_version} as {digest}")
    command = command_line(engine, where, served_name=digest, port=given.port)
    return command, process_environment(engine, os.environ)


def main(arguments: Sequence[str]) -> NoReturn:
    """Becomes vLLM; ends with the error's exit code when that cannot be."""
    try:
        command, environment = prepared(arguments, _environment())
    except TunegateError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    os.execve(command[0], command, environment)


def _environment() -> ServeEnvironment:
    """The Python that the image names, where vLLM lies beside ours; else our own."""
    return find_environment("" if os.environ.get(PYTHON_VARIABLE) else sys.executable)


def _flags(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SettingsError(
            "The flags of production cannot be read.",
            seen=f"{text!r}: {error}",
            expected="a JSON object, as a deployment gives it",
            remedy="deploy again",
        ) from error
    return dict(found) if isinstance(found, dict) else {"": found}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunegate.serving.entrypoint", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its manifest")
    parser.add_argument("--expect", default="", help="the content digest that it must have")
    parser.add_argument("--also", action="append", default=[], help="a further name that requests may use")
    parser.add_argument("--flags", default="{}", help="the section 'serving' of the recipe, as JSON")
    parser.add_argument("--host", default="0.0.0.0", help="where it listens")
    parser.add_argument("--port", type=int, default=8080, help="where it listens")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
