"""The memory plan against what a run really takes: three methods, two sizes; on a GPU a model of 1 B parameters too.

Each run trains three steps on batches of a known size, because the plan is of the largest batch. Weights are random:
what a run takes depends on shapes alone. On a CPU the peak of resident memory is measured, on a GPU that of the
allocator.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from material import base_model
from side import asked, measure, peak_bytes, tell

METHODS = ("lora", "qlora", "full")
SMOL = {"model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192}
SIZES: dict[str, dict[str, Any]] = {
    "135M": {**SMOL, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3},
    "360M": {**SMOL, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
             "num_attention_heads": 15, "num_key_value_heads": 5},
}  # fmt: skip
LARGE = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 8192,
         "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8}  # fmt: skip

#: Rows and tokens a row of a batch, by device.
BATCH = {"cpu": (4, 128), "cuda": (4, 4096)}
STEPS = 3


def side(shape: dict[str, Any], method: str) -> None:
    """Trains a few steps and tells the plan's peak and the measured one."""
    import torch

    from tunegate.contracts.settings import settings_document
    from tunegate.models.load import device_type, load_tokenizer
    from tunegate.preflight.memory import plan
    from tunegate.train.hold import decide
    from tunegate.train.model import load_base
    from tunegate.train.settings import TrainSettings
    from tunegate.train.trainer import build_trainer

    device = device_type()
    rows, length = BATCH[device]
    settings = TrainSettings(
        method=method, per_device_train_batch_size=rows, max_length=length, init_r=24, num_train_epochs=1
    )
    with tempfile.TemporaryDirectory() as scratch:
        base, data = Path(scratch) / "base", Path(scratch) / "data"
        _write_model(base, shape)
        _write_rows(data, rows * STEPS, length)
        held = decide(settings, shape, length, device=device)
        trainer = build_trainer(
            load_base(base, settings), load_tokenizer(base), data, settings, held, scratch=Path(scratch)
        )
        trainer.args.eval_strategy, trainer.args.eval_on_start = "no", False
        tokens = rows * len(trainer.train_dataset[0]["input_ids"])
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    planned = plan(
        shape, settings_document(settings), device=device, gradient_checkpointing=held.gradient_checkpointing,
        optim=held.optim, tokens=tokens, labelled_tokens=tokens,
    )  # fmt: skip
    tell({
        "planned": planned.peak_bytes, "phase": planned.phase, "tokens_per_second": tokens * STEPS / seconds,
        "measured": _allocated(torch) if device == "cuda" else peak_bytes(),
    })  # fmt: skip


def _allocated(torch: Any) -> int:
    """What the GPU has given away at the most: the allocator's blocks, and what CUDA itself took."""
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return int(torch.cuda.max_memory_reserved() + context)


def _write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A model of random weights in bfloat16, tensor by tensor: loading it must not be the peak."""
    import shutil
    import subprocess
    import sys

    script = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModelForCausalLM\n"
        "shape = json.loads(sys.argv[2]); torch.set_default_dtype(torch.bfloat16)\n"
        "config = AutoConfig.for_model(**shape, pad_token_id=2, eos_token_id=2, bos_token_id=1)\n"
        "AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[1])\n"
    )  # in a process of its own: what it holds does not count
    subprocess.run([sys.executable, "-c", script, str(folder), json.dumps(shape)], check=True, capture_output=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base_model() / name, folder / name)


def _write_rows(folder: Path, count: int, length: int) -> None:
    """Rows of plain text, longer than they are cut to: every token but the first has a label."""
    folder.mkdir()
    rng = random.Random(0)
    words = ["seven", "rivers", "carry", "old", "stones", "to", "the", "northern", "sea", "in", "spring"]
    for side_name, rows in (("train", count), ("validation", 1)):
        texts = [" ".join(rng.choices(words, k=length + 8)) for _ in range(rows)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{side_name}.jsonl").write_text(lines, "utf-8")


def main() -> None:
    """Runs every size and method and prints plan, measurement and their ratio."""
    from tunegate.models.load import device_type

    base_model()
    device = device_type()
    shapes = {"1.2B": LARGE} if device == "cuda" else SIZES
    allowed = 0.10 if device == "cuda" else 0.20
    print(
        f"{device}: batches of {BATCH[device][0]} × {BATCH[device][1]} tokens; the plan should be within {allowed:.0%}"
    )
    found = {
        (size, method): measure(Path(__file__), "run", shape=shape, method=method)
        for size, shape in shapes.items()
        for method in (METHODS if device == "cpu" else (*METHODS, "adalora"))
    }
    print(f"\n{'':15}{'planned GB':>11}{'measured GB':>13}{'ratio':>7}{'tokens/s':>10}  peak at")
    for (size, method), m in found.items():
        print(
            f"{size:6}{method:9}{m['planned'] / 1e9:11.2f}{m['measured'] / 1e9:13.2f}"
            f"{m['planned'] / m['measured']:7.2f}{m['tokens_per_second']:10.0f}  {m['phase']}"
        )
    worst = max(abs(m["planned"] / m["measured"] - 1) for m in found.values())
    print(f"worst {worst:.0%} (within {allowed:.0%})")


if __name__ == "__main__":
    if wanted := asked():
        side(wanted[1]["shape"], wanted[1]["method"])
    else:
        main()
