"""What is told of a run must be what happened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from tunegate.train.callbacks import Clock, DivergenceWatch, slowed


def control() -> Any:
    return SimpleNamespace(should_training_stop=False)


def state(*losses: float) -> Any:
    return SimpleNamespace(log_history=[{"step": i + 1.0, "loss": loss} for i, loss in enumerate(losses)])


def test_the_clock_leaves_out_what_is_no_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 50.0, 53.0])  # validation from 12 to 50
    monkeypatch.setattr("tunegate.train.callbacks.time.monotonic", lambda: next(now))
    clock = Clock()
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)
    assert clock.rate(200) == pytest.approx(100)
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)
    assert clock.rate(230) == pytest.approx(10)


def test_a_loss_that_runs_away_is_told_once_with_advice_and_does_not_end_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch, ordered = DivergenceWatch(stop=False, advice="lower learning_rate (now 1)"), control()
    for _ in range(2):
        watch.on_log(None, state(*[1.0] * 5, *[9.0] * 5), ordered)
    assert capsys.readouterr().out.count("lower learning_rate (now 1)") == 1
    assert not ordered.should_training_stop


@pytest.mark.parametrize(("stop", "losses"), [(True, [1.0] * 5 + [9.0] * 5), (False, [1.0, float("nan")])])
def test_the_run_ends_where_it_was_told_to_or_is_hopeless(stop: bool, losses: list[float]) -> None:
    ordered = control()
    DivergenceWatch(stop=stop, advice="").on_log(None, state(*losses), ordered)
    assert ordered.should_training_stop


def test_paging_that_slowed_the_run_is_told_and_noise_is_not() -> None:
    assert "from 100 to 40 tokens/s" in slowed([5.0] + [100.0] * 12 + [40.0] * 12)
    assert slowed([5.0] + [100.0] * 12 + [80.0] * 12) == ""
    assert slowed([100.0] * 5 + [10.0] * 5) == ""  # too few steps to tell
