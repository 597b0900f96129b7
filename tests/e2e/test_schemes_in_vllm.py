"""Every scheme on real vLLM, as the table of serving targets has it for this machine: what it serves answers as in
transformers, what it has not is refused with the table's reason, and vLLM itself fails or answers otherwise.

One process loads one tiny model after the other: a start takes a minute, a further model a second.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import SCHEMES
from tunegate.preflight.serving_targets import TARGETS, Cell
from tunegate.preflight.this_machine import this_machine
from tunegate.serving.engine import Engine, process_environment

pytestmark = pytest.mark.serving

HERE = this_machine().target

#: How far a log-probability may lie from transformers', on average and at most. The libraries add in another order; in
#: bfloat16 that costs a float model 0.03 on average, and where activations are quantized as they come, a last bit moves
#: a code, and with it all that follows.
AVERAGE = {"W4A16": 0.06, "W4A16_ASYM": 0.06, "W8A8": 0.15, "FP8_DYNAMIC": 0.01, "FP8": 0.01}
LARGEST = {"W4A16": 0.5, "W4A16_ASYM": 0.5, "W8A8": 1.2, "FP8_DYNAMIC": 0.4, "FP8": 0.4}

LENGTH = 24

#: Loads every model, and answers greedily with those that load.
SERVE = """
import gc, json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    asked = json.load(open(sys.argv[1]))
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    sampling = SamplingParams(temperature=0, max_tokens=asked["length"], ignore_eos=True, prompt_logprobs=0, logprobs=0)
    said = {}
    for name, (folder, dtype) in asked["models"].items():
        llm = None
        try:
            llm = LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=512,
                      kv_cache_memory_bytes=64 << 20, enable_prefix_caching=False)
            said[name] = {"answers": [
                {"ids": [*found.prompt_token_ids, *found.outputs[0].token_ids],
                 "prompt": len(found.prompt_token_ids),
                 "logprobs": [
                     each[token].logprob if each else None
                     for each, token in zip(
                         [*found.prompt_logprobs, *found.outputs[0].logprobs],
                         [*found.prompt_token_ids, *found.outputs[0].token_ids],
                     )
                 ]}
                for found in llm.generate(prompts, sampling, use_tqdm=False)
            ]}
        except Exception as error:
            said[name] = {"failed": f"{type(error).__name__}: {error}"}
        llm = None
        gc.collect()
        cleanup_dist_env_and_memory()
    json.dump(said, open(sys.argv[2], "w"))
"""


@dataclass
class Said:
    """What vLLM said to each scheme, and the model that it was asked with."""

    folders: dict[str, Path]
    answers: dict[str, Any]


def cell(scheme: str) -> Cell:
    if not HERE:
        pytest.skip("this machine is no serving target")
    return TARGETS[HERE].cells[scheme]


def dtype(scheme: str) -> str:
    """What both sides compute in."""
    return cell(scheme).dtype or "float32"


@pytest.fixture(scope="module")
def said(
    make_base: Any,
    tiny_dataset: Path,
    tiny_tokenizer: Any,
    tiny_rows: list[dict[str, Any]],
    serve_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Said:
    from tunegate.models.chat import render
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run

    place, base = tmp_path_factory.mktemp("schemes"), make_base(hidden=128)
    folders = {scheme: place / scheme for scheme in SCHEMES}
    for scheme, folder in folders.items():
        settings = QuantizeSettings(scheme=scheme, num_calibration_samples=24)
        run(settings, model=base, dataset=tiny_dataset, output=folder)
    turns = [row["messages"] for row in tiny_rows[:6]]
    asked = {
        "prompts": [render(tiny_tokenizer, turn[:-1], turn[-1:]).prompt_ids for turn in turns],
        "models": {scheme: (str(folder), dtype(scheme)) for scheme, folder in folders.items()},
        "length": LENGTH,
    }
    (place / "asked.json").write_text(json.dumps(asked))
    (place / "serve.py").write_text(SERVE)
    done = subprocess.run(
        [str(serve_python), str(place / "serve.py"), str(place / "asked.json"), str(place / "said.json")],
        cwd=place,
        env=process_environment(Engine(base, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}), os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (place / "said.json").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return Said(folders, json.loads((place / "said.json").read_text("utf-8")))


def distance(scheme: str, said: Said) -> tuple[float, float, int, int]:
    """How far log-probabilities are off, on average and at most; how many tokens are certain, and how many wrong."""
    import torch

    from tunegate.models.load import load_causal_lm

    model = load_causal_lm(said.folders[scheme], dtype=dtype(scheme))
    off: list[float] = []
    certain = wrong = 0
    for answer in said.answers[scheme]["answers"]:
        ids = answer["ids"]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for place, (token, found) in enumerate(zip(ids[1:], answer["logprobs"][1:], strict=True)):
            off.append(abs(found - float(expected[place, token])))
            best, second = expected[place].topk(2).values.tolist()
            if place >= answer["prompt"] - 1 and best - second > 2 * LARGEST[scheme]:
                certain += 1
                wrong += token != int(expected[place].argmax())
    return sum(off) / len(off), max(off), certain, wrong


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_table_says_of_this_machine_is_what_vllm_does(scheme: str, said: Said) -> None:
    served = cell(scheme).served
    if "failed" in said.answers[scheme]:
        print(f"{scheme} on {HERE}: {said.answers[scheme]['failed'][:200]}")
        assert served == "no"
        return
    average, largest, certain, wrong = distance(scheme, said)
    print(f"{scheme} on {HERE}: off by {average:.2g} on average, {largest:.2g} at most; {wrong} of {certain} wrong")
    as_evaluated = average <= AVERAGE[scheme] and largest <= LARGEST[scheme] and wrong == 0
    assert as_evaluated == (served == "as evaluated")
    if as_evaluated:
        assert certain > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_this_machine_cannot_serve_is_refused_with_the_reason_of_the_table(
    scheme: str, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run

    if cell(scheme).served != "no":
        pytest.skip(f"{HERE} serves {scheme}")
    settings = QuantizeSettings(scheme=scheme, serving_target=HERE, num_calibration_samples=24)
    with pytest.raises(SettingsError, match="cannot be served") as caught:
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.seen == cell(scheme).reason
