"""Real vLLM on a CPU: what serves as evaluated passes, and four ways of serving something else are each told apart.

A start takes more than a minute, so two of the faults share one: weights and rendering are looked at by different
figures, and each fault must show in its own alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.serve_check.settings import ServeCheckSettings
from tunegate.serving.environment import find_environment
from tunegate.serving.flags import ServingFlags, production_engine
from tunegate.serving.process import start

pytestmark = pytest.mark.serving

FLAGS = ServingFlags(kv_cache_memory_bytes=64 << 20)
SETTINGS = ServeCheckSettings(enabled=True, rows=12, max_new_tokens=24, evaluation_rows=4)

#: What an integer product saturates without (serving/README.md): this engine computes wrongly on any CPU.
NO_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve_check")


@pytest.fixture(scope="module")
def dataset(place: Path, base: Path, rows_file: Path) -> Path:
    from tunegate.prepare.settings import PrepareSettings
    from tunegate.prepare.step import run

    settings = PrepareSettings(max_length=256, validation_fraction=0.3)
    run(settings, dataset=str(rows_file), base_model=base, output=place / "dataset")
    return place / "dataset"


@pytest.fixture(scope="module")
def base(make_base: Any) -> Path:
    """A Llama with heads of 32, the smallest that vLLM's attention on a CPU knows."""
    return make_base(hidden=128)


@pytest.fixture(scope="module")
def quantized(place: Path, base: Path, dataset: Path) -> Callable[[str], Path]:
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run

    def make(scheme: str) -> Path:
        output = place / scheme
        run(QuantizeSettings(scheme=scheme, num_calibration_samples=24), model=base, dataset=dataset, output=output)
        return output

    return make


def damaged(source: Path, output: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a model that was changed, with a manifest made anew: only its behaviour tells."""

    def build(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        change(folder)

    produce(output, kind="quantized", parents={}, settings={}, build=build)
    return output


def scales_of_one_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    changed = [name for name in tensors if name.startswith("model.layers.1.mlp.") and name.endswith("weight_scale")]
    assert changed
    for name in changed:
        tensors[name] = tensors[name] * 1.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def chat_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("<|im_start|>assistant", "<|im_start|>assistant:"), "utf-8")
    assert "assistant:" in path.read_text("utf-8")


def another_models_tokenizer(folder: Path) -> None:
    """One of the same size and with the same special tokens, that learned from other text."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folder)
    template = own.chat_template
    other = own.train_new_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, vocab_size=len(own))
    other.chat_template = template
    assert len(other) <= len(own)
    other.save_pretrained(folder)


def served(
    candidate: Path, evaluated: Path, dataset: Path, log: Path, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What the report says when ``candidate`` is served where ``evaluated`` was evaluated."""
    from tunegate.contracts.progress import Progress
    from tunegate.models.load import load_tokenizer
    from tunegate.models.probe import read_probe
    from tunegate.serve_check.answers import ask
    from tunegate.serve_check.questions import probe_questions
    from tunegate.serve_check.report import serving_document
    from tunegate.serve_check.step import held_against

    tokenizer, where = load_tokenizer(evaluated), find_environment()
    probe = read_probe(dataset, tokenizer, rows=SETTINGS.rows, max_length=511, max_scored_tokens=64)
    questions = probe_questions(probe, dataset, tokenizer, max_new_tokens=SETTINGS.max_new_tokens, context_tokens=512)
    engine = dataclasses.replace(production_engine(FLAGS, candidate, where), environment=environment or {})
    with start(engine, where, log=log, ready_seconds=3600.0) as server:
        progress = Progress("serve_check", len(questions), "rows answered")
        answers = ask(server.client, server.served_name, questions, progress)
    checked = held_against(evaluated, answers, SETTINGS, dtype="float32")
    found = serving_document(
        checked.rows, checked.noise, digests={}, served_name=server.served_name, engine={}, evaluated_with={},
        texts=checked.texts,
    )  # fmt: skip
    print({name: found[name] for name in ("agreement", "rendered", "ended", "certain_tokens", "logprobs", "noise")})
    return found


def times_noise(found: dict[str, Any]) -> float:
    return float(found["logprobs"]["mean"] / found["noise"]["mean"])


@pytest.fixture(scope="module")
def fp8(quantized: Callable[[str], Path]) -> Path:
    return quantized("FP8_DYNAMIC")


def test_a_model_that_serves_as_evaluated_passes_the_gate(fp8: Path, dataset: Path, place: Path) -> None:
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate
    from tunegate.gate.serving import ServingRule, check_serving, read_serving
    from tunegate.serve_check.step import run

    settings = EvaluateSettings(tasks=("tool_call",), limit=4, max_new_tokens=16)
    evaluation = evaluate(settings, model=fp8, dataset=dataset, output=place / "evaluation")
    manifest = run(
        SETTINGS, FLAGS, model=fp8, dataset=dataset, evaluation=place / "evaluation", output=place / "serving"
    )
    found = json.loads((place / "serving" / "serving.json").read_text("utf-8"))
    print(found["logprobs"], found["noise"], (place / "serving" / "timings.json").read_text("utf-8"))
    assert found["served_name"] == verify(fp8).content_digest
    assert (found["rows"], found["evaluation_rows"]) == (16, 4)
    artifacts = {"dataset": verify(dataset), "quantized": verify(fp8)}
    report = read_serving(place / "serving", manifest)
    checks = check_serving(ServingRule(), report, artifacts=artifacts, evaluation=evaluation.content_digest)
    assert [check for check in checks if check.decision != "PASS"] == []


@pytest.fixture(scope="module")
def corrupted(fp8: Path, dataset: Path, place: Path) -> dict[str, Any]:
    """Scales of one layer are another tenth larger, and the chat template is another."""

    def change(folder: Path) -> None:
        scales_of_one_layer(folder)
        chat_template(folder)

    return served(damaged(fp8, place / "corrupted", change), fp8, dataset, place / "corrupted.log")


def test_a_corrupted_quantization_is_caught(corrupted: dict[str, Any]) -> None:
    assert times_noise(corrupted) > 3


def test_a_changed_chat_template_is_caught(corrupted: dict[str, Any]) -> None:
    assert corrupted["rendered"] == 0.0


@pytest.fixture(scope="module")
def saturating(quantized: Callable[[str], Path], dataset: Path, place: Path) -> dict[str, Any]:
    """The right bytes on an engine whose integer product saturates, with the tokenizer of another model."""
    w8a8 = quantized("W8A8")
    candidate = damaged(w8a8, place / "tokenizer", another_models_tokenizer)
    return served(candidate, w8a8, dataset, place / "saturating.log", NO_VNNI)


def test_an_engine_that_computes_wrongly_is_caught(saturating: dict[str, Any]) -> None:
    assert times_noise(saturating) > 3


def test_another_models_tokenizer_is_caught(saturating: dict[str, Any]) -> None:
    assert saturating["rendered"] == 0.0
