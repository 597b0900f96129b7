"""The load: vLLM's own generator (``vllm bench serve``), run in the serving environment."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.contracts.progress import Progress, say
from tunegate.costs.measurement import METRICS, PERCENTILES
from tunegate.costs.settings import Load
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.guarded import Guarded
from tunegate.serving.isolation import isolated
from tunegate.serving.log import last_line, telling_lines

TASK = "costs"

#: vLLM's own command finds no metadata in a build for a CPU (0.32); what it calls is in every version.
_PROGRAM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
_RESULT = "result.json"

#: Where the generator's progress bar stands: ``12/100 [00:03``.
_BAR = re.compile(r"(\d+)/\d+ \[")
_POLL_SECONDS = 0.5
_STOP_SECONDS = 5.0


def make_load(
    load: Load, *, url: str, models: Sequence[str], tokenizer: Path, where: ServeEnvironment
) -> dict[str, Any]:
    """Asks a server as the load says, and returns what the generator wrote.

    Args:
        load: the load.
        url: ``http://host:port``.
        models: what is asked, one after the other.
        tokenizer: a folder with the tokenizer by which prompts are made to their length.
        where: the environment that holds the generator.

    Raises:
        RunError: when the generator fails; a request that fails is none of that.
    """
    with tempfile.TemporaryDirectory(prefix="tunegate-costs-") as scratch:
        log = Path(scratch) / "load.log"
        command = [str(where.python), "-c", _PROGRAM]
        command += _options(load, url=url, models=models, tokenizer=tokenizer, folder=Path(scratch))
        process = Guarded(command, isolated(os.environ), log=log, stop_seconds=_STOP_SECONDS)
        try:
            code = _ended(process, log, load.requests)
        finally:
            process.stop()
        try:
            found: dict[str, Any] = json.loads((Path(scratch) / _RESULT).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                "The load generator failed.",
                seen=f"exit code {code}, and no result ({type(error).__name__})",
                expected="what `vllm bench serve` of vLLM 0.32 writes",
                remedy=f"look whether {url} answers, and whether {tokenizer} holds its tokenizer",
                items=telling_lines(log),
            ) from error
    return found


def _options(load: Load, *, url: str, models: Sequence[str], tokenizer: Path, folder: Path) -> list[str]:
    given: dict[str, object] = {
        "--backend": "openai",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--model": models[0],
        "--tokenizer": tokenizer.absolute(),
        "--dataset-name": "random",
        "--random-input-len": load.prompt_tokens,
        "--random-output-len": load.answer_tokens,
        "--num-prompts": load.requests,
        "--temperature": 0,
        "--seed": load.seed,
        "--percentile-metrics": ",".join(METRICS),
        "--metric-percentiles": ",".join(map(str, PERCENTILES)),
        "--result-dir": folder,
        "--result-filename": _RESULT,
    }
    given |= {"--request-rate": load.rate} if load.rate else {"--max-concurrency": load.at_once}
    options = [str(word) for pair in given.items() for word in pair]
    options += ["--save-result", "--save-detailed"]
    return [*options, "--lora-assignment", "round-robin", "--lora-modules", *models]


def _ended(process: Guarded, log: Path, requests: int) -> int:
    """The exit code of the generator, once it has ended; tells how far it is."""
    say(TASK, "the load generator starts")
    progress: Progress | None = None
    while (code := process.poll()) is None:
        if found := _BAR.search(last_line(log)):
            progress = progress or Progress(TASK, requests, "requests answered")
            if new := int(found[1]) - progress.done:
                progress.advance(new)
        time.sleep(_POLL_SECONDS)
    return code
