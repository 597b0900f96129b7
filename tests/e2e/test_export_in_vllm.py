"""A real vLLM loads what is exported and answers as PEFT does, and refuses what the lint says it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.export.settings import ExportSettings
from tunegate.export.step import run
from tunegate.models.load import load_causal_lm
from tunegate.preflight.vllm_adapter import lint_adapter

pytestmark = pytest.mark.serving
torch = pytest.importorskip("torch")

ROOM, NEW_TOKENS = 16, 24
WEIGHTS = "adapter_model.safetensors"
PROMPTS = [[5, 9, 30, 44, 7, 12], [101, 17, 3, 90, 61], [200, 8, 8, 150, 23, 77, 41]]

#: Loads every adapter into one engine, and answers greedily with those that load.
SERVE = """
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    asked = json.load(open(sys.argv[1]))
    llm = LLM(model=asked["base"], dtype="float32", enforce_eager=True, max_model_len=128, enable_lora=True,
              max_lora_rank=asked["room"], max_loras=1, max_cpu_loras=32, enable_prefix_caching=False)
    sampling = SamplingParams(temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    said = {}
    for number, (name, folder) in enumerate(asked["adapters"].items(), start=1):
        request = LoRARequest(name, number, folder)
        try:
            llm.llm_engine.add_lora(request)
            answers = llm.generate(prompts, sampling, lora_request=request, use_tqdm=False)
            said[name] = {"answers": [list(answer.outputs[0].token_ids) for answer in answers]}
        except Exception as error:
            said[name] = {"refused": f"{type(error).__name__}: {error}"}
    json.dump(said, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def base(place: Path, tiny_tokenizer: Any) -> Path:
    """A two-layer Llama with heads of a size that vLLM's CPU kernels have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place / "base")
    tiny_tokenizer.save_pretrained(place / "base")
    return place / "base"


@pytest.fixture(scope="module")
def raw(place: Path, base: Path) -> Path:
    """An AdaLoRA adapter of irregular ranks, one of them 0."""
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=12, target_r=4, lora_alpha=24, total_step=10, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    model = get_peft_model(load_causal_lm(base), config)
    masks: dict[str, list[bool]] = {}
    for name, parameter in model.base_model.model.named_parameters():
        if "lora_" in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        if "lora_E" in name:
            masks[name] = (torch.rand(12) < len(masks) / 13).tolist()
    assert not any(next(iter(masks.values())))
    model.peft_config["default"].rank_pattern = masks
    model.save_pretrained(str(place / "raw"))
    return place / "raw"


@pytest.fixture(scope="module")
def exported(place: Path, base: Path, raw: Path) -> Path:
    run(ExportSettings(), base_model=base, adapter=raw, output=place / "exported")
    return place / "exported"


def damaged(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **config: Any) -> Path:
    from safetensors.torch import load_file, save_file

    changed = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / WEIGHTS)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
DAMAGE: dict[str, Callable[[Path], Path]] = {
    "above the room": lambda p: damaged(p, lambda t: t, r=64, lora_alpha=64),
    "a rank of 0": lambda p: damaged(p, lambda t: t, rank_pattern={"q_proj": 0}),
    "dora": lambda p: damaged(p, lambda t: t, use_dora=True),
    "half a pair": lambda p: damaged(
        p, lambda t: {name: v for name, v in t.items() if "o_proj.lora_B" not in name}
    ),
    "factors above the room": lambda p: damaged(
        p, lambda t: {name: torch.cat([v, v], int("B" in name)) for name, v in t.items()}
    ),
    "a larger model's": lambda p: damaged(
        p, lambda t: {name: torch.cat([v, v], int("A" in name)) for name, v in t.items()}
    ),
    "a saved head": lambda p: damaged(
        p, lambda t: {**t, "base_model.model.score.weight": torch.ones(2, 128)}, modules_to_save=["score"]
    ),
    "another architecture": lambda p: damaged(p, lambda t: {k.replace("o_proj", "dense"): v for k, v in t.items()}),
    "layers that are not there": lambda p: damaged(
        p, lambda t: {k.replace("layers.1.", "layers.9."): v for k, v in t.items()}
    ),
    "a smaller model's": lambda p: damaged(p, lambda t: {k: v[:, :100] for k, v in t.items() if "lora_A" in k} | {
        k: v for k, v in t.items() if "lora_B" in k}),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(place: Path, raw: Path, exported: Path) -> dict[str, Path]:
    made = {name: damage(shutil.copytree(exported, place / name)) for name, damage in DAMAGE.items()}
    for folder in made.values():
        (folder / "manifest.json").unlink()
    return {"raw": raw, "exported": exported, **made}


@pytest.fixture(scope="module")
def served(serve_python: Path, place: Path, base: Path, adapters: dict[str, Path]) -> Any:
    """What a real engine does with each adapter: answers, or why it refuses."""
    (place / "serve.py").write_text(SERVE, "utf-8")
    folders = {name: str(folder) for name, folder in adapters.items()}
    asked = {"base": str(base), "room": ROOM, "new_tokens": NEW_TOKENS, "prompts": PROMPTS, "adapters": folders}
    (place / "asked.json").write_text(json.dumps(asked), "utf-8")
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(serve_python), str(place / "serve.py"), str(place / "asked.json"), str(place / "said.json")],
        env={**os.environ, **quiet}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert (place / "said.json").is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((place / "said.json").read_text("utf-8"))


def greedy(base: Path, adapter: Path) -> list[list[int]]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_causal_lm(base), str(adapter)).eval()
    answers = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def test_the_export_answers_in_vllm_as_the_original_does_in_peft(served: Any, base: Path, raw: Path) -> None:
    expected = greedy(base, raw)
    assert served["exported"] == {"answers": expected}
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)


def test_vllm_refuses_what_the_lint_says_it_refuses_and_loads_the_rest(
    served: Any, base: Path, adapters: dict[str, Path]
) -> None:
    verdicts = {name: lint_adapter(folder, base=base, max_lora_rank=ROOM) for name, folder in adapters.items()}
    assert {name: "answers" in said for name, said in served.items()} == {n: v.loads for n, v in verdicts.items()}


def test_the_raw_adapter_is_refused_for_the_reason_that_the_lint_gives(served: Any, base: Path, raw: Path) -> None:
    first, *_ = lint_adapter(raw, base=base, max_lora_rank=ROOM).linted.findings
    assert first.seen in served["raw"]["refused"]
    assert "tunegate export" in first.remedy


@pytest.mark.parametrize("name", ["layers that are not there", "a smaller model's"])
def test_what_vllm_loads_without_a_word_is_an_error_of_the_lint_because_it_answers_otherwise(
    name: str, served: Any, base: Path, adapters: dict[str, Path]
) -> None:
    verdict = lint_adapter(adapters[name], base=base, max_lora_rank=ROOM)
    assert verdict.loads and any(finding.severity == "error" for finding in verdict.linted.findings)
    assert served[name]["answers"] != served["exported"]["answers"]
