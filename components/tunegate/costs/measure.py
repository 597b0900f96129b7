"""Measures a running server: warms it up, puts the load on it, and reads what came of it."""

from __future__ import annotations

import datetime
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunegate.contracts.errors import InputError, RunError, SettingsError
from tunegate.contracts.progress import say
from tunegate.costs.load import TASK, make_load
from tunegate.costs.measurement import METRICS, PERCENTILES, Asked, Machine, Measurement, Model, Spread
from tunegate.costs.memory import processes_memory_bytes
from tunegate.costs.settings import Load, refuse_unstated, told
from tunegate.serving.answers import ServedModel
from tunegate.serving.client import Client
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.together import asked_together

_CPU_INFO = Path("/proc/cpuinfo")

#: Tokens of a warm-up's prompt: every vocabulary has these.
_WARM_UP_TOKENS = range(3, 250)

#: How many errors of requests are told.
_ERROR_CHARACTERS = 300


def measure(
    load: Load,
    *,
    url: str,
    models: Sequence[str],
    label: str,
    where: ServeEnvironment,
    tokenizer: Path | None = None,
    pid: int = 0,
    marks: Mapping[str, float] | None = None,
) -> Measurement:
    """Measures a server under a load.

    Args:
        load: the load.
        url: ``http://host:port``, also with ``/v1``.
        models: the served names that are asked, one after the other; at least one.
        label: what the measurement is called on a page.
        where: the environment that holds the load generator.
        tokenizer: the folder of the model's tokenizer; None: the folder that the server says it loaded.
        pid: the process whose memory is measured, with all that it started; 0: none.
        marks: what happens meanwhile → its ``time.monotonic()``; read at the end, so that it may grow until then.

    Raises:
        InputError: when the load is not stated, the server lacks a model or refuses the requests, there is no
            tokenizer, or the process cannot be read.
        RunError: when the server does not answer, or no request was answered.
    """
    refuse_unstated(load)
    base_url = _base_url(url)
    client = Client(base_url)
    served = {model.name: model for model in client.models()}
    missing = [name for name in models if name not in served]
    if missing or not models:
        raise InputError(
            f"The server at {base_url} lacks a model that should be measured.",
            seen=", ".join(served) or "no model",
            expected="every name that is asked",
            remedy="name models as the server does",
            items=missing,
        )
    folder = tokenizer or _tokenizer_folder(served, models[0])
    if pid:
        processes_memory_bytes(pid)  # before minutes are spent
    before = os.getloadavg()[0]
    _warm_up(client, load, models)
    say(TASK, f"{label}: {told(load)}")
    found = make_load(load, url=base_url, models=models, tokenizer=folder, where=where)
    memory = processes_memory_bytes(pid) if pid else None
    measurement = _read(
        found,
        load=load,
        url=base_url,
        models=tuple(Model(name, served[name].root) for name in models),
        label=label,
        memory_bytes=memory,
        machine=Machine(_processor(), len(os.sched_getaffinity(0)), before, os.getloadavg()[0]),
        generator=f"vLLM {where.vllm_version}, bench serve",
        marks=marks or {},
    )
    if not measurement.completed:
        raise RunError(
            f"The server at {base_url} answered none of {load.requests} requests.",
            seen=measurement.asked[0].error if measurement.asked else "nothing",
            expected="answers",
            remedy="look at the server's log; prompt and answer together may be longer than it takes",
        )
    return measurement


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path.rstrip("/") in ("", "/v1")
        fits = fits and not (parts.username or parts.password or parts.query)
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(
            "The server's address cannot be used.",
            seen=repr(url.rpartition("@")[2]),
            expected="http://host:port, also with /v1",
            remedy="give the address that `tunegate deploy` says",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _tokenizer_folder(served: Mapping[str, ServedModel], name: str) -> Path:
    """The folder of the model, for an adapter that of its base, where it is one of this machine."""
    model = served[name]
    folder = Path(served.get(model.parent, model).root)
    if not (folder.is_absolute() and (folder / "tokenizer_config.json").is_file()):
        raise SettingsError(
            "There is no tokenizer to make prompts of the stated length by.",
            seen=f"{name} was loaded from {str(folder)!r}, which is no folder of this machine with a tokenizer",
            expected="the folder of the model, or of its tokenizer alone",
            remedy="give it with --tokenizer",
        )
    return folder


def _warm_up(client: Client, load: Load, models: Sequence[str]) -> None:
    """Every model answers requests of the load's size that are not counted: the first ones of a size are slower."""
    drawn = random.Random(load.seed + 1)
    questions = [
        (name, drawn.choices(_WARM_UP_TOKENS, k=load.prompt_tokens)) for _ in range(load.warm_up) for name in models
    ]
    asked_together(
        questions,
        lambda question: client.complete(
            question[1], model=question[0], max_tokens=load.answer_tokens, ignore_eos=True
        ),
        at_once=max(load.at_once, 1),
    )


def _read(found: Mapping[str, Any], *, marks: Mapping[str, float], **known: Any) -> Measurement:
    """The generator's result as a measurement.

    Raises:
        RunError: when it is not of the shape that vLLM 0.32 writes.
    """
    try:
        starts = found["start_times"]
        first = min(starts)
        names = [model.name for model in known["models"]]
        lists = (starts, found["ttfts"], found["itls"], found["latencies"], found["errors"])
        asked = tuple(
            Asked(
                at_seconds=round(start - first, 4),
                model=names[place % len(names)],
                first_token_ms=_milliseconds(first_token),
                gaps_ms=tuple(_milliseconds(gap) for gap in gaps),
                whole_ms=_milliseconds(whole),
                error=" ".join(str(error).split())[-_ERROR_CHARACTERS:],
            )
            for place, (start, first_token, gaps, whole, error) in enumerate(zip(*lists, strict=True))
        )
        return Measurement(
            latency={name: _spread(found, name) for name in METRICS},
            seconds=float(found["duration"]),
            completed=int(found["completed"]),
            failed=int(found["failed"]),
            requests_per_second=float(found["request_throughput"]),
            answer_tokens_per_second=float(found["output_throughput"]),
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            asked=asked,
            marks={name: round(at - first, 3) for name, at in marks.items()},
            **known,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "The load generator wrote something else than was expected.",
            seen=f"{type(error).__name__}: {error}",
            expected="what `vllm bench serve` of vLLM 0.32 writes with --save-detailed",
            remedy="measure with the serving environment of images/serve/requirements.lock",
        ) from error


def _spread(found: Mapping[str, Any], metric: str) -> Spread:
    values = {f"p{percent}": float(found[f"p{percent}_{metric}_ms"]) for percent in PERCENTILES}
    return Spread(mean=float(found[f"mean_{metric}_ms"]), **values)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", _CPU_INFO.read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else "unknown"
