"""Full-size kills: every method, many times, at random moments; run by `make torture`."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

KILLS = 20


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "full"])
def test_twenty_random_kills_and_interruptions_change_nothing(method: str, attempts: Any, tmp_path: Path) -> None:
    """Runs of a dozen steps are sent SIGKILL or SIGTERM at any moment, loading included, until twenty were hit."""
    whole = attempts(method, "whole")
    seconds = whole.attempt()
    rng, hits, runs, resumed = random.Random(method), 0, 0, 0
    while hits < KILLS:
        runs += 1
        work = attempts(method, f"run-{runs}", checkpoint_uri=str(tmp_path / f"checkpoints-{runs}"))
        while not work.codes or work.codes[-1] != 0:
            number = rng.choice((signal.SIGKILL, signal.SIGTERM)) if hits < KILLS else None
            work.attempt(number=number, after_seconds=rng.uniform(0, seconds))
            assert work.codes[-1] in (0, 75, -signal.SIGKILL, -signal.SIGTERM), work.said
            hits += work.codes[-1] != 0
        resumed += work.said.count("going on after step")
        assert work.digest == whole.digest, work.said
    print(f"\n{method}: {hits} hits in {runs} runs, gone on {resumed} times, every adapter {whole.digest[:12]}")
    assert resumed
