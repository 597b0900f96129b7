"""What the benchmarks of serving share: vLLM on the demonstration's model, and a load on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from material import PLACE

from tunegate.costs.measure import measure
from tunegate.costs.measurement import Measurement, read_measurement, write_measurement
from tunegate.costs.settings import Load
from tunegate.serving.engine import Engine
from tunegate.serving.environment import find_environment
from tunegate.serving.process import Server, start

COSTS = PLACE / "costs"

#: Of each server, so that what serving takes besides shows in its memory: 5,800 tokens of this model in float32.
CACHE_BYTES = 256 << 20

PROMPT_TOKENS, ANSWER_TOKENS = 128, 32


@contextmanager
def served(
    name: str, model: Path, adapters: Mapping[str, Path] | None = None, *, cores: Sequence[int] = (), **engine: Any
) -> Iterator[Server]:
    """A vLLM as production has it on a CPU: eager, float32.

    Args:
        name: of its log.
        model: the base, or a model that stands alone.
        adapters: name → folder.
        cores: those of this machine that it may use; all otherwise.
        engine: further fields of ``Engine``.
    """
    ours = os.sched_getaffinity(0)
    if cores:
        environment = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), **engine.pop("environment", {})}
        engine["environment"] = environment
        os.sched_setaffinity(0, cores)  # what is started inherits it; vLLM's other threads would go anywhere
    try:
        what = Engine(
            model, dtype="float32", max_model_len=1024, kv_cache_memory_bytes=CACHE_BYTES,
            lora_modules=adapters or {}, **engine,
        )  # fmt: skip
        server = start(what, find_environment(), log=COSTS / f"{name}.log")
    finally:
        os.sched_setaffinity(0, ours)
    with server:
        yield server


def costs(label: str, server: Server, models: Sequence[str] = (), *, url: str = "", **how: Any) -> Measurement:
    """Measures a server and keeps the measurement, for the page.

    Args:
        label: what it is called, and its file.
        server: whose memory counts, and the address unless ``url`` is another one.
        models: what is asked; the model itself otherwise.
        url: where it is asked.
        how: fields of ``Load``, and ``marks``.
    """
    marks = how.pop("marks", {})
    load = Load(**{"prompt_tokens": PROMPT_TOKENS, "answer_tokens": ANSWER_TOKENS, "warm_up": 4, **how})
    found = measure(
        load, url=url or server.url, models=list(models) or [server.served_name], label=label,
        where=find_environment(), pid=server.group, marks=marks,
    )  # fmt: skip
    write_measurement(found, kept(label))
    return found


def kept(label: str) -> Path:
    """The file of a measurement."""
    return COSTS / f"{label.replace(' ', '-').replace(',', '')}.json"


def read(label: str) -> Measurement:
    """What another process measured."""
    return read_measurement(kept(label))


def quiet(measurement: Measurement) -> str:
    """How quiet the machine was, for whoever reads the figures."""
    return f"load average {measurement.machine.load_before:.1f} before, {measurement.machine.load_after:.1f} after"
