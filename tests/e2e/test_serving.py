"""Real vLLM on a CPU, served: what it answers to a tiny model is what transformers answers.

A start takes more than a minute, so a float model with an adapter and a quantized one have one each, and every question
is asked while it lasts. tests/e2e/test_schemes_in_vllm.py asks every scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunegate.contracts.errors import InputError, RunError
from tunegate.contracts.manifest import input_digest
from tunegate.preflight.this_machine import this_machine
from tunegate.serving.answers import Completion
from tunegate.serving.engine import Engine
from tunegate.serving.environment import find_environment
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probes import check_probes
from tunegate.serving.process import Server, start

pytestmark = pytest.mark.serving

AVX512 = "avx512" in this_machine().target or this_machine().target == "vllm-cpu-amx"

#: What is served: every CPU has both.
SCHEMES = ("float32", "FP8_DYNAMIC")

#: How far a log-probability may lie from transformers', on average and at most. The libraries add in another order;
#: where activations are quantized as they come, a last bit now and then moves a code, and with it all that follows.
AVERAGE = {"float32": 1e-5, "FP8_DYNAMIC": 0.01}
LARGEST = {"float32": 1e-4, "FP8_DYNAMIC": 0.4}

ADAPTER = "adapter-1"
LENGTH = 24


@dataclass
class Served:
    """A model, and the server that has it."""

    scheme: str
    folder: Path
    server: Server

    def answer(self, prompt: list[int], **asked: Any) -> Completion:
        asked = {"model": self.server.served_name, "max_tokens": LENGTH, "ignore_eos": True, **asked}
        return self.server.client.complete(prompt, **asked)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def base(make_base: Any) -> Path:
    """A Llama with heads of 32, the smallest that vLLM's attention on a CPU knows."""
    return make_base(hidden=128)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunegate.models.load import load_causal_lm

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    get_peft_model(load_causal_lm(base), config).save_pretrained(folder)
    return folder


def quantized(scheme: str, base: Path, dataset: Path, place: Path) -> Path:
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run

    settings = QuantizeSettings(scheme=scheme, num_calibration_samples=24)
    run(settings, model=base, dataset=dataset, output=place / "quantized")
    return place / "quantized"


def started(folder: Path, place: Path, **how: Any) -> Server:
    engine = Engine(folder, dtype="float32", kv_cache_memory_bytes=64 << 20, **how)
    return start(engine, find_environment(), log=place / "serve.log", ready_seconds=3600.0)


@pytest.fixture(scope="module", params=SCHEMES)
def served(
    request: pytest.FixtureRequest, base: Path, adapter: Path, tiny_dataset: Path, tmp_path_factory: Any
) -> Iterator[Served]:
    scheme, place = request.param, tmp_path_factory.mktemp("served")
    plain = scheme == "float32"
    folder = base if plain else quantized(scheme, base, tiny_dataset, place)
    with started(folder, place, lora_modules={ADAPTER: adapter} if plain else {}) as server:
        print(f"{scheme}: ready after {server.started_seconds:.0f} s")
        yield Served(scheme, folder, server)
        first = psutil.Process(server.group)
        processes = [first, *first.children(recursive=True)]
    assert len(processes) > 1  # the engine is a process of its own
    assert not any(alive(process) for process in processes)


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer: Any, tiny_rows: list[dict[str, Any]]) -> list[list[int]]:
    from tunegate.models.chat import render

    messages = [row["messages"] for row in tiny_rows[:6]]
    return [render(tiny_tokenizer, turns[:-1], turns[-1:]).prompt_ids for turns in messages]


def log_probabilities(model: Any, ids: list[int]) -> Any:
    """What transformers gives to every token at every place: positions × vocabulary, float32."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def agreement(model: Any, completions: Sequence[Completion], *, largest: float) -> tuple[float, float, int]:
    """Holds answers against transformers' forward pass over prompt and answer.

    Where the two best candidates lie closer than twice what a log-probability may be off, either is right.

    Returns:
        how far log-probabilities of prompts and answers are off, on average and at most, and how many tokens of the
        answers were certain.
    """
    off: list[float] = []
    certain = 0
    for completion in completions:
        tokens = [*completion.prompt, *completion.tokens]
        expected = log_probabilities(model, [token.token_id for token in tokens])
        for place, token in enumerate(tokens[1:]):
            if token.logprob is not None:
                off.append(abs(token.logprob - float(expected[place, token.token_id])))
        for place, token in enumerate(completion.tokens, start=len(completion.prompt) - 1):
            best, second = expected[place].topk(2).values.tolist()
            if best - second > 2 * largest:
                certain += 1
                assert token.token_id == int(expected[place].argmax())
    return sum(off) / len(off), max(off), certain


def test_answers_are_those_of_transformers(served: Served, prompts: list[list[int]]) -> None:
    from tunegate.models.load import load_causal_lm

    scheme = served.scheme
    answers = [served.answer(prompt, prompt_logprobs=0) for prompt in prompts]
    assert [[token.token_id for token in answer.prompt] for answer in answers] == prompts
    average, largest, certain = agreement(load_causal_lm(served.folder), answers, largest=LARGEST[scheme])
    print(f"{scheme}: off by {average:.2g} on average, {largest:.2g} at most; {certain} tokens certain")
    assert average <= AVERAGE[scheme]
    assert largest <= LARGEST[scheme]
    assert certain > LENGTH / 4


def test_an_answer_proves_which_bytes_gave_it(served: Served, prompts: list[list[int]]) -> None:
    digest = input_digest(served.folder)
    first, *_ = served.server.client.models()
    assert first.name == digest
    assert first.root == str(served.folder)
    with pytest.raises(InputError, match="refuses the request") as raised:
        served.answer(prompts[0], model="another-model")
    assert "HTTP 404" in raised.value.seen
    assert "another-model" in raised.value.seen


def test_an_adapter_answers_under_its_own_name_as_in_peft(
    served: Served, adapter: Path, prompts: list[list[int]]
) -> None:
    if served.scheme != "float32":
        pytest.skip("adapters are served on the float model")
    from peft import PeftModel

    from tunegate.models.load import load_causal_lm

    model = PeftModel.from_pretrained(load_causal_lm(served.folder), adapter)
    adapted = [served.answer(prompt, model=ADAPTER) for prompt in prompts]
    _, largest, certain = agreement(model, adapted, largest=LARGEST[served.scheme])
    assert largest <= LARGEST[served.scheme]
    assert certain > LENGTH / 4
    plain = [served.answer(prompt) for prompt in prompts]
    assert all(one.tokens != other.tokens for one, other in zip(adapted, plain, strict=True))


def test_a_chat_is_rendered_as_it_was_trained(
    served: Served, prompts: list[list[int]], tiny_rows: list[dict[str, Any]]
) -> None:
    messages = tiny_rows[0]["messages"][:-1]
    chat = served.server.client.chat(messages, model=served.server.served_name, max_tokens=4)
    plain = served.answer(prompts[0], max_tokens=4, ignore_eos=False)
    assert [token.token_id for token in chat.prompt] == prompts[0]
    assert [token.token_id for token in chat.tokens] == [token.token_id for token in plain.tokens]
    assert chat.text == plain.text
    assert chat.finish_reason == plain.finish_reason


def test_a_prompt_that_is_too_long_is_refused_with_the_servers_reason(served: Served) -> None:
    with pytest.raises(InputError, match="refuses the request") as raised:
        served.answer([5] * 600)
    assert "HTTP 400" in raised.value.seen
    assert "512" in raised.value.seen


@pytest.mark.skipif(AVX512, reason="this CPU has the kernel")
def test_a_scheme_without_a_kernel_for_this_cpu_is_an_error_before_anything_is_asked(
    base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """vLLM itself starts, and says that it is well."""
    folder = quantized("W4A16", base, tiny_dataset, tmp_path)
    with pytest.raises(RunError, match="up and cannot answer") as raised:
        started(folder, tmp_path)
    assert any("cpu_gemm_wna16" in line for line in raised.value.items)


def test_probes_that_the_evaluated_model_wrote_down_are_answered_by_the_server_and_by_no_other_model(
    served: Served, tiny_dataset: Path
) -> None:
    """The model is asked by its digest; an adapter on it renders the same and answers something else."""
    from tunegate.contracts.progress import Progress
    from tunegate.models.load import load_tokenizer
    from tunegate.models.probe import read_probe
    from tunegate.serve_check.answers import ask
    from tunegate.serve_check.questions import probe_questions
    from tunegate.serve_check.settings import ServeCheckSettings
    from tunegate.serve_check.step import held_against

    tokenizer, client, name = load_tokenizer(served.folder), served.server.client, served.server.served_name
    probe = read_probe(tiny_dataset, tokenizer, rows=6, max_length=511, max_scored_tokens=64)
    questions = probe_questions(probe, tiny_dataset, tokenizer, max_new_tokens=LENGTH, context_tokens=512)
    answers = ask(client, name, questions, Progress("serve_check", len(questions), "rows answered"))
    probes = held_against(served.folder, answers, ServeCheckSettings(), dtype="float32").probes(name)
    right = check_probes(client, name, probes, AnswerLimits())
    print(served.scheme, right.to_json())
    assert right.passed, right.reasons
    if served.scheme == "float32":
        other = check_probes(client, ADAPTER, probes, AnswerLimits())
        assert other.to_json()["rendered"] == 1.0
        assert any(reason.startswith("min agreement") for reason in other.reasons)


def test_an_evaluation_through_the_server_scores_what_one_through_transformers_scores(
    served: Served, tiny_dataset: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run

    rows = {}
    for name, how in (("here", {}), ("served", {"backend": "openai", "base_url": served.server.url})):
        settings = EvaluateSettings(limit=8, batch_size=4, max_new_tokens=8, noise_rows=0, dtype="float32", **how)
        run(settings, model=served.folder, dataset=tiny_dataset, output=tmp_path / name)
        rows[name] = pq.read_table(tmp_path / name / "rows.parquet").to_pylist()
    here, there = rows["here"], rows["served"]
    assert len(here) == 24 and [line["prompt_digest"] for line in there] == [line["prompt_digest"] for line in here]
    off = [abs(a["score"] - b["score"]) for a, b in zip(here, there, strict=True) if a["metric"] == "nll"]
    print(f"{served.scheme}: nll of a row off by {max(off):.1e} at most")
    assert max(off) < LARGEST[served.scheme]
    if served.scheme == "float32":
        assert [line["answer"] for line in there] == [line["answer"] for line in here]


def test_what_vllms_own_load_generator_writes_is_read_as_a_measurement(served: Served) -> None:
    from tunegate.costs.measure import measure
    from tunegate.costs.settings import Load

    load = Load(at_once=2, requests=6, prompt_tokens=16, answer_tokens=8, warm_up=1, seed=1)
    names = [served.server.served_name, *([ADAPTER] if served.scheme == "float32" else [])]
    where, group = find_environment(), served.server.group
    found = measure(load, url=served.server.url, models=names, label=served.scheme, where=where, pid=group)
    print(f"{served.scheme}: {found.summary()}")
    assert (found.completed, found.failed) == (6, 0)
    assert {one.model for one in found.asked} == set(names)
    assert all(one.first_token_ms > 0 and 1 <= len(one.gaps_ms) <= 7 for one in found.asked)  # one may bring two tokens
    spread = found.latency["e2el"]
    assert 0 < spread.p50 <= spread.p95 <= spread.p99 <= max(one.whole_ms for one in found.asked) + 0.01
    assert found.answer_tokens_per_second == pytest.approx(6 * 8 / found.seconds)
    assert found.memory_bytes is not None and found.memory_bytes > 100e6
