"""A killed evaluation goes on: what was asked before is not asked again. And memory that runs out halves the batch."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tunegate.contracts.errors import RunError
from tunegate.evaluate.harness_model import harness_model
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.models.load import load_causal_lm, load_tokenizer

SETTINGS = EvaluateSettings(limit=6, batch_size=4, max_new_tokens=6, noise_rows=0)

#: Evaluates, and kills itself with SIGKILL at the second task, when the first is finished.
KILLED = """
import os, signal, sys
from pathlib import Path
from tunegate.evaluate import step
from tunegate.evaluate.settings import EvaluateSettings

measure = step.measure

def once(task, settings, **given):
    if task.name == "completion_perplexity":
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(task, settings, **given)

step.measure = once
settings = EvaluateSettings(limit=6, batch_size=4, max_new_tokens=6, noise_rows=0)
model, dataset, output = map(Path, sys.argv[1:])
step.run(settings, model=model, dataset=dataset, output=output)
"""


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    tiny_base, tiny_dataset, tmp_path, monkeypatch, capsys
) -> None:
    whole = run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "whole")
    output = tmp_path / "killed"
    arguments = [sys.executable, "-c", KILLED, str(tiny_base), str(tiny_dataset), str(output)]
    ended = subprocess.run(arguments, check=False, capture_output=True, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not output.exists() and (tmp_path / "killed.tasks").is_dir()

    asked = _counted(monkeypatch)
    assert run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=output).content_digest == whole.content_digest
    assert asked == ["completion_perplexity"]
    assert "tool_call was asked before" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}, "nothing is left beside it"


def test_a_finished_task_of_other_settings_or_another_model_is_asked_anew(
    tiny_base, make_base, tiny_dataset, tmp_path, monkeypatch
) -> None:
    def evaluate(name: str, **more: Any) -> None:
        given = {"model": tiny_base, "dataset": tiny_dataset, "reuse": tmp_path / "kept", **more}
        run(given.pop("settings", SETTINGS), output=tmp_path / name, **given)

    asked = _counted(monkeypatch)
    evaluate("one")
    evaluate("again")
    assert asked == ["tool_call", "completion_perplexity"]
    del asked[:]
    evaluate("other model", model=make_base(seed=3))
    longer = EvaluateSettings(limit=6, batch_size=4, max_new_tokens=7, noise_rows=0, tasks=("completion_perplexity",))
    evaluate("other settings", settings=longer)
    assert asked == ["tool_call", "completion_perplexity", "completion_perplexity"]


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from tunegate.evaluate import step

    measure, asked = step.measure, []

    def counting(task: Any, settings: Any, **given: Any) -> Any:
        asked.append(task.name)
        return measure(task, settings, **given)

    monkeypatch.setattr("tunegate.evaluate.step.measure", counting)
    return asked


def _short_of_memory(model: Any, most_rows: int) -> list[int]:
    """Lets a model run out of memory at more rows than ``most_rows``; returns the sizes of the batches it was given."""
    import torch

    forward, sizes = model.forward, []

    def limited(input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        rows = len(input_ids if input_ids is not None else kwargs["inputs_embeds"])
        sizes.append(rows)
        if rows > most_rows:
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids, *args, **kwargs)

    model.forward = limited
    return sizes


def _requests(kind: str, count: int) -> list[Any]:
    from lm_eval.api.instance import Instance

    texts = [f"<|im_start|>user\n{'weather ' * (1 + n)}<|im_end|>\n<|im_start|>assistant\n" for n in range(count)]
    how = {"until": [], "do_sample": False, "max_gen_toks": 4}
    arguments = [(text, how if kind == "generate_until" else f"Paris {n}") for n, text in enumerate(texts)]
    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_memory_that_runs_out_halves_the_batch_and_changes_no_answer(kind, tiny_base, capsys) -> None:
    tokenizer, requests = load_tokenizer(tiny_base), _requests(kind, 9)
    wanted = getattr(harness_model(load_causal_lm(tiny_base), tokenizer, batch_size=1, rendered=True), kind)(requests)
    model = load_causal_lm(tiny_base)
    sizes = _short_of_memory(model, most_rows=2)
    asked = harness_model(model, tokenizer, batch_size=32, rendered=True)
    found = getattr(asked, kind)(requests)
    if kind == "generate_until":
        assert found == wanted
    else:
        assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], rel=1e-4)
    assert max(sizes) > 2 and sizes[-1] <= 2 and asked.batch_size < 32
    assert "memory ran out with" in capsys.readouterr().out


def test_rows_that_were_answered_before_memory_ran_out_are_not_asked_again(tiny_base, capsys) -> None:
    import torch

    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    asked = harness_model(model, tokenizer, batch_size=4, rendered=True)
    generate, batches = asked._model_generate, []

    def once_too_much(context: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(context))
        if len(batches) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(context, *args, **kwargs)

    asked._model_generate = once_too_much
    assert len(asked.generate_until(_requests("generate_until", 8))) == 8
    assert batches == [4, 4, 2, 2]
    assert "4 rows at once: going on with 2, 4 rows are left" in capsys.readouterr().out


def test_a_row_that_does_not_fit_at_all_is_an_error_and_other_errors_stay_what_they_are(tiny_base) -> None:
    model, tokenizer = load_causal_lm(tiny_base), load_tokenizer(tiny_base)
    _short_of_memory(model, most_rows=0)
    with pytest.raises(RunError, match="out of memory"):
        harness_model(model, tokenizer, batch_size=2, rendered=True).generate_until(_requests("generate_until", 2))

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such kernel")

    model.forward = broken
    with pytest.raises(RuntimeError, match="no such kernel"):
        harness_model(model, tokenizer, batch_size=2, rendered=True).generate_until(_requests("generate_until", 2))


def test_the_noise_floor_is_measured_on_rows_asked_again_in_other_batches(tiny_base, tiny_dataset, tmp_path) -> None:
    """In float32 the same rows, alone or together, differ by rounding and no more."""
    settings = EvaluateSettings(limit=6, batch_size=4, max_new_tokens=6, noise_rows=3)
    run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    noise = json.loads((tmp_path / "out/results.json").read_text())["noise"]
    assert set(noise) == {"tool_call", "completion_perplexity"}
    assert {(found["rows"], found["rows_at_once"]) for found in noise.values()} == {(3, 1)}
    assert noise["tool_call"]["answers_changed"] == 0
    assert noise["completion_perplexity"]["largest_change"]["nll"] < 1e-4
    assert "Noise floor" in (tmp_path / "out/page.html").read_text()
