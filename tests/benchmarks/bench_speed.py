"""LoRA for one epoch: tunegate's trainer against plain TRL, with the same model, rows, adapter, optimizer and batch.

Both sides train in float32, 8 rows at once, without gradient checkpointing, and neither validates while it trains; both
are judged afterwards by the same loss over the validation rows. Useful tokens are those of the rows: padding does not
count.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from material import MAX_LENGTH, base_model, dataset, own_loss
from side import asked, measure, peak_bytes, tell

SETTINGS: dict[str, Any] = {
    "method": "lora", "learning_rate": 4e-4, "per_device_train_batch_size": 8, "max_length": MAX_LENGTH, "seed": 42,
}  # fmt: skip


def plain(scratch: Path) -> Any:
    """TRL's SFTTrainer as its documentation shows it; what it does by default stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from tunegate.train.model import lora_config
    from tunegate.train.settings import TrainSettings
    from tunegate.train.trainer import load_side

    settings = TrainSettings(**SETTINGS)
    folder = str(base_model())
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder),
        args=SFTConfig(
            output_dir=str(scratch), use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=8, per_device_eval_batch_size=8, num_train_epochs=1, max_length=MAX_LENGTH,
            learning_rate=settings.learning_rate, lr_scheduler_type="cosine", seed=42, data_seed=42,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=5,
        ),
        train_dataset=load_side(dataset(), "train", scratch=scratch),
        peft_config=lora_config(settings),
    )  # fmt: skip


def tunegate(scratch: Path) -> Any:
    """The trainer that the step builds, with what the memory plan decides, but without validation."""
    from transformers import set_seed

    from tunegate.models.files import read_config
    from tunegate.models.load import device_type, load_tokenizer
    from tunegate.train.hold import decide, longest_row
    from tunegate.train.model import load_base
    from tunegate.train.settings import TrainSettings
    from tunegate.train.trainer import build_trainer

    settings, base = TrainSettings(**SETTINGS, dtype="float32"), base_model()
    set_seed(settings.seed)
    held = decide(settings, read_config(base), longest_row(dataset()), device=device_type())
    trainer = build_trainer(load_base(base, settings), load_tokenizer(base), dataset(), settings, held, scratch=scratch)
    trainer.args.eval_strategy, trainer.args.eval_on_start = "no", False
    return trainer


def side(name: str) -> None:
    """Trains and tells seconds, tokens, the peak of resident memory and the loss on the validation rows."""
    from tunegate.models.load import load_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        trainer = {"plain TRL": plain, "tunegate": tunegate}[name](Path(scratch))
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        began = time.perf_counter()
        trainer.train()
        seconds, peak = time.perf_counter() - began, peak_bytes()
        loss = own_loss(trainer.model, load_tokenizer(base_model()), dataset() / "validation.jsonl")
    tell({"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_bytes": peak, "validation_loss": loss})


def main() -> None:
    """Runs both sides, one after the other, and prints the ratios."""
    dataset()
    found = {name: measure(Path(__file__), name) for name in ("plain TRL", "tunegate")}
    print(f"\n{'':12}{'seconds':>9}{'tokens/s':>10}{'peak GB':>9}{'validation loss':>17}")
    for name, m in found.items():
        print(
            f"{name:12}{m['seconds']:9.0f}{m['tokens_per_second']:10.1f}"
            f"{m['peak_bytes'] / 1e9:9.2f}{m['validation_loss']:17.4f}"
        )
    ours, theirs = found["tunegate"], found["plain TRL"]
    print(f"speed   {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} × (at least 1.8)")
    print(f"memory  {ours['peak_bytes'] / theirs['peak_bytes']:.2f} × (at most 0.5)")
    print(f"loss    {ours['validation_loss'] / theirs['validation_loss'] - 1:+.2%} (within 2 %)")


if __name__ == "__main__":
    if wanted := asked():
        side(wanted[0])
    else:
        main()
