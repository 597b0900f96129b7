"""Merging a rank-16 adapter of every linear layer into a bfloat16 Llama: tunegate's step against PEFT and `cp`.

Both sides start with everything imported and end with the model's files written; tunegate's also verifies its inputs
and writes digests of what it made. Memory is the anonymous part of what is resident (`RssAnon`): pages of mapped files
are the system's to take back. `--quick` leaves the growth to 4 B parameters out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from side import asked, measure, tell

WIDTH, INNER, KEY_VALUE, VOCABULARY, RANK = 2048, 5632, 256, 32000, 16
#: Parameters → layers of this width; 22 are TinyLlama's 1.1 B.
LAYERS = {"0.3 B": 4, "1.1 B": 22, "4.0 B": 88}
SHARDS = 5
LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEY_VALUE, WIDTH), "self_attn.v_proj": (KEY_VALUE, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip


def make(folder: str, layers: int) -> None:
    """Writes the base, shard by shard, and the adapter."""
    import torch
    from safetensors.torch import save_file

    base, adapter = Path(folder) / "base", Path(folder) / "adapter"
    base.mkdir()
    adapter.mkdir()
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    factors: dict[str, Any] = {}
    for layer in range(layers):
        for name, (outputs, inputs) in LINEAR.items():
            module = f"model.layers.{layer}.{name}"
            shapes[f"{module}.weight"] = (outputs, inputs)
            factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.02
            factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.02
    norms = [f"model.layers.{n}.{kind}_layernorm.weight" for n in range(layers) for kind in ("input", "post_attention")]
    total = sum(rows * columns for rows, columns in shapes.values())
    shards: list[dict[str, Any]] = [{} for _ in range(SHARDS)]
    weight_map, written = {}, 0
    for name, shape in shapes.items():
        at = min(written * SHARDS // total, SHARDS - 1)
        weight_map[name] = f"model-{at + 1:05}-of-{SHARDS:05}.safetensors"
        shards[at][name] = (torch.randn(shape) * 0.02).to(torch.bfloat16)
        written += shape[0] * shape[1]
    for name in [*norms, "model.norm.weight"]:
        shards[-1][name] = torch.ones(WIDTH, dtype=torch.bfloat16)
        weight_map[name] = f"model-{SHARDS:05}-of-{SHARDS:05}.safetensors"
    for at, tensors in enumerate(shards):
        save_file(tensors, base / f"model-{at + 1:05}-of-{SHARDS:05}.safetensors", metadata={"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": VOCABULARY,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    save_file(factors, adapter / "adapter_model.safetensors")
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "task_type": "CAUSAL_LM", "bias": "none",
            "target_modules": [name.rpartition(".")[2] for name in LINEAR]}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    tell({"bytes": sum(file.stat().st_size for file in base.iterdir())})


def tunegate(folder: Path) -> Callable[[], object]:
    """The step as the pipeline runs it."""
    import safetensors.torch
    import torch

    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run

    assert torch and safetensors
    settings = MergeSettings(merge_base="original")
    return lambda: run(settings, base_model=folder / "base", adapter=folder / "adapter", output=folder / "out")


def peft(folder: Path) -> Callable[[], object]:
    """What PEFT's documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    assert modeling_llama

    def merge() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
        merged.save_pretrained(folder / "out", max_shard_size="500MB")

    return merge


def copy(folder: Path) -> Callable[[], object]:
    """The files, copied: no merge can do with less."""
    return lambda: subprocess.run(["cp", "-r", folder / "base", folder / "out"], check=True)


def side(name: str, folder: str) -> None:
    """Runs one side and tells its seconds and its peak of anonymous memory above that after the imports."""
    work = {"tunegate": tunegate, "PEFT": peft, "cp": copy}[name](Path(folder))
    os.sync()
    with _peak_anonymous() as peak:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    shutil.rmtree(Path(folder) / "out")
    tell({"seconds": seconds, "peak_bytes": peak[0]})


@contextmanager
def _peak_anonymous() -> Iterator[list[int]]:
    before, peak, done = _anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous_bytes() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def compared(folder: Path, size: str, sides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Makes the model, runs the sides one after the other, and removes it."""
    here = Path(__file__)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = measure(here, "make", folder=scratch, layers=LAYERS[size])
        found = {name: measure(here, name, folder=scratch) for name in sides}
    for name, m in found.items():
        rate = made["bytes"] / m["seconds"] / 1e9
        print(f"{size:6}{name:10}{m['seconds']:8.1f} s{rate:7.2f} GB/s{m['peak_bytes'] / 1e6:9.0f} MB anonymous")
    return found


def main() -> None:
    """Runs every size and prints the ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        one = compared(place, "1.1 B", ("cp", "tunegate", "PEFT"))
        sizes = ("0.3 B",) if "--quick" in sys.argv else ("0.3 B", "4.0 B")
        grown = {size: compared(place, size, ("tunegate",))["tunegate"] for size in sizes}
    ours, theirs = one["tunegate"], one["PEFT"]
    print(f"time   {ours['seconds'] / theirs['seconds']:.2f} × PEFT's (at most 0.5)")
    print(f"memory {ours['peak_bytes'] / theirs['peak_bytes']:.3f} × PEFT's (at most 0.25)")
    print(f"time   {ours['seconds'] / one['cp']['seconds']:.1f} × that of cp")
    for size, m in grown.items():
        time_ratio, memory = m["seconds"] / ours["seconds"], m["peak_bytes"] / ours["peak_bytes"]
        print(f"{size} against 1.1 B: {time_ratio:.2f} × the time, {memory:.2f} × the memory")


if __name__ == "__main__":
    if wanted := asked():
        if wanted[0] == "make":
            make(**wanted[1])
        else:
            side(wanted[0], **wanted[1])
    else:
        main()
