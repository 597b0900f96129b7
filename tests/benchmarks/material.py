"""What the benchmarks work on: the demonstration's model and rows, made once below ``runs/bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACE = Path("runs/bench")
MAX_LENGTH = 512


def base_model() -> Path:
    """SmolLM2-135M-Instruct as safetensors."""
    from tunegate_pipelines.demo.model import write_base_model

    folder = PLACE / "base"
    if not folder.exists():
        write_base_model(folder)
    return folder


def dataset() -> Path:
    """The Berkeley Function Calling rows, prepared as the demonstration prepares them."""
    from tunegate.prepare.settings import PrepareSettings
    from tunegate.prepare.step import run
    from tunegate_pipelines.demo.data import write_rows

    folder, rows = PLACE / "dataset", PLACE / "rows.jsonl"
    if not folder.exists():
        write_rows(rows)
        settings = PrepareSettings(evaluation_fraction=0.28, num_calibration_samples=32, max_length=MAX_LENGTH)
        run(settings, dataset=str(rows), base_model=base_model(), output=folder)
    return folder


def own_loss(model: Any, tokenizer: Any, rows: Path) -> float:
    """Cross-entropy per completion token, row by row, by transformers' own forward: the same judge for every side."""
    import torch

    from tunegate.models.chat import render

    total, tokens = 0.0, 0
    model.eval()
    for line in rows.read_text("utf-8").split("\n"):
        if not line:
            continue
        row = json.loads(line)
        rendered = render(tokenizer, row["prompt"], row["completion"])
        ids = torch.tensor([rendered.prompt_ids + rendered.completion_ids])
        labels = torch.tensor([[-100] * len(rendered.prompt_ids) + rendered.completion_ids])
        with torch.no_grad():
            loss = model(input_ids=ids.to(model.device), labels=labels.to(model.device)).loss
        total, tokens = total + float(loss) * len(rendered.completion_ids), tokens + len(rendered.completion_ids)
    return total / tokens


def adapters(count: int) -> dict[str, Path]:
    """LoRA adapters of every linear layer (r 16) with random weights: what serving costs does not depend on them."""
    folders = {f"adapter-{number}": PLACE / "adapters" / str(number) for number in range(1, count + 1)}
    for seed, folder in enumerate(folders.values()):
        if not folder.exists():
            _write_adapter(folder, seed)
    return folders


def _write_adapter(folder: Path, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from tunegate.models.load import load_causal_lm

    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(base_model()), config)
    for name, factor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(factor, std=0.002)
    model.save_pretrained(folder)


def merged(name: str) -> Path:
    """One of :func:`adapters`, merged into the base."""
    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run

    folder = PLACE / "merged" / name
    run(MergeSettings(merge_base="original"), base_model=base_model(), adapter=PLACE / "adapters" / name.split("-")[1],
        output=folder)  # fmt: skip
    return folder
