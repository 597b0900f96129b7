"""Training in a child process that can be interrupted and killed."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import TunegateError
from tunegate.contracts.manifest import verify
from tunegate.storage.open import open_storage
from tunegate.train.settings import TrainSettings

#: A run of twelve optimizer steps, with a checkpoint after each.
SETTINGS: dict[str, Any] = {
    "r": 4, "init_r": 6, "lora_alpha": 8, "lora_dropout": 0.1, "learning_rate": 5e-3, "max_length": 256,
    "per_device_train_batch_size": 8, "num_train_epochs": 2.0, "evaluations_per_run": 6, "checkpoint_seconds": 0.0,
}  # fmt: skip


@dataclass
class Attempts:
    """One piece of work, tried until it is done.

    Attributes:
        arguments: what ``run`` is given.
        log: what the attempts said.
        codes: how each attempt ended: 0 done, 75 interrupted, negative the signal that killed it.
    """

    arguments: dict[str, Any]
    log: Path
    codes: list[int] = field(default_factory=list)

    def attempt(
        self,
        *,
        number: int | None = None,
        after_seconds: float = 0.0,
        after_step: int | None = None,
        inside: Callable[[], None] = lambda: None,
    ) -> float:
        """Runs once, sent signal ``number`` after a while or when a step is kept; returns the seconds that it took.

        ``inside`` is called in the child before it starts.
        """
        child = multiprocessing.get_context("fork").Process(target=self._child, args=(inside,))
        began = time.monotonic()
        child.start()
        if after_step is not None:
            wait_for_step(self.arguments["checkpoint_uri"], after_step)
        if number is not None:
            child.join(after_seconds)
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, number)
        child.join(300)
        assert child.exitcode is not None, self.said
        self.codes.append(child.exitcode)
        return time.monotonic() - began

    def _child(self, inside: Callable[[], None]) -> None:
        """A fork has the libraries loaded already; OpenMP's threads do not survive it, so that there is one thread."""
        import torch

        from tunegate.train.step import run

        torch.set_num_threads(1)
        gc.freeze()  # what the libraries made is looked through no more
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        with self.log.open("a", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = said
            faulthandler.dump_traceback_later(270, exit=True, file=said)  # a child that hangs says where
            try:
                inside()
                run(**self.arguments)
            except TunegateError as error:
                print(error, flush=True)
                os._exit(error.exit_code)
            except BaseException:
                traceback.print_exc()
                said.flush()
                os._exit(99)
            said.flush()
            os._exit(0)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8")

    @property
    def digest(self) -> str:
        return verify(self.arguments["output"], kind="adapter").content_digest


def wait_for_step(place: str, step: int) -> None:
    """Waits until a checkpoint of that step or a later one is complete."""
    storage = open_storage(place)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        complete = [key.split("/")[1] for key in storage.list("") if key.endswith("/manifest.json")]
        if any(int(name.removeprefix("step-")) >= step for name in complete):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} below {place}")


@pytest.fixture
def attempts(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> Any:
    """Makes a piece of work; the same method is the same work."""
    # Loaded before the first fork, so that a child starts at once: most are lazy.
    import bitsandbytes  # noqa: F401
    import peft.tuners  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    import tunegate.train.tune_trainer  # noqa: F401

    def make(method: str, name: str, *, checkpoint_uri: str = "", **settings: Any) -> Attempts:
        wanted = {**SETTINGS, **({"learning_rate": 1e-3} if method == "full" else {}), **settings}
        arguments = {
            "settings": TrainSettings(method=method, **wanted), "base_model": tiny_base, "dataset": tiny_dataset,
            "output": tmp_path / name / "adapter", "checkpoint_uri": checkpoint_uri,
        }  # fmt: skip
        (tmp_path / name).mkdir()
        return Attempts(arguments, tmp_path / name / "log.txt")

    return make


@dataclass(frozen=True)
class Whole:
    """What a run that nobody disturbed came to."""

    digest: str
    seconds: float


_WHOLE: dict[tuple[str, Path], Whole] = {}


@pytest.fixture
def whole(attempts: Any, tiny_base: Path) -> Any:
    """The undisturbed run of a method, made once."""

    def make(method: str) -> Whole:
        if (method, tiny_base) not in _WHOLE:
            work = attempts(method, f"whole-{method}")
            seconds = work.attempt()
            assert work.codes == [0], work.said
            _WHOLE[method, tiny_base] = Whole(work.digest, seconds)
        return _WHOLE[method, tiny_base]

    return make
