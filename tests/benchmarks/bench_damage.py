"""What merging into 4 bits costs: PEFT's `merge_and_unload`, which quantizes again, beside tunegate's two merges.

Each model is held against the adapter on the NF4 base it was trained on (divergence on validation rows), and asked for
tool calls on evaluation rows. `python bench_damage.py RUN [ROWS]` takes the folder of a finished demonstration.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from side import asked, measure, tell

#: Probe rows, scored tokens of each, and how many rows are asked together.
PROBE_ROWS, PROBE_TOKENS, BATCH = 24, 48, 10
MODELS = ("adapter on NF4", "PEFT, into 4-bit", "tunegate, dequantized", "tunegate, original")


def load(name: str, base: Path, adapter: Path, scratch: Path) -> Any:
    """One of the models, in the dtype that this machine computes in."""
    from peft import PeftModel

    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run
    from tunegate.models.load import load_causal_lm
    from tunegate.models.training import read_training
    from tunegate.models.tuned import load_as_trained

    training = read_training(adapter)
    if training is None or training["four_bit"] is None:
        raise SystemExit(f"{adapter} was not trained on a 4-bit base")
    if name.startswith("tunegate"):
        kind = name.rpartition(" ")[2]
        run(MergeSettings(merge_base=kind), base_model=base, adapter=adapter, output=scratch / kind)
        return load_causal_lm(scratch / kind).eval()
    model = load_as_trained(base, adapter, training)
    assert isinstance(model, PeftModel)
    return in_float(model.merge_and_unload()).eval() if name.startswith("PEFT") else model


def in_float(model: Any) -> Any:
    """A 4-bit model with bitsandbytes' own dequantized weights in plain layers: no 4-bit kernel has a part in it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            if module.bias is not None:
                plain.bias.data = module.bias.data.float()
            model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], plain)
    return model


def side(name: str, base: str, adapter: str, dataset: str, rows: int, scratch: str) -> None:
    """Tells a model's mean divergence and agreement on the probe rows, and its valid and exact calls."""
    from tunegate.models.likelihood import score, token_kl
    from tunegate.models.load import load_tokenizer
    from tunegate.models.probe import read_probe

    tokenizer, place = load_tokenizer(Path(base)), Path(scratch)
    model = load(name, Path(base), Path(adapter), place)
    probe = read_probe(Path(dataset), tokenizer, rows=PROBE_ROWS, max_length=512, max_scored_tokens=PROBE_TOKENS)
    kl, agreed = [], []
    for number, scored in enumerate(score(model, probe.rows, batch_size=4)):
        reference = place / f"{number}.npy"
        if name == MODELS[0]:
            np.save(reference, scored.log_probs)
        expected = np.load(reference, allow_pickle=False)
        kl.append(token_kl(expected, scored.log_probs))
        agreed.append(expected.argmax(axis=1) == scored.log_probs.argmax(axis=1))
    calls = _calls(model, tokenizer, Path(dataset) / "evaluation.jsonl", rows)
    tell({"kl": float(np.concatenate(kl).mean()), "top1": float(np.concatenate(agreed).mean()), **calls})


def _calls(model: Any, tokenizer: Any, path: Path, rows: int) -> dict[str, float]:
    """The shares of valid and of exact calls among greedy answers."""
    import torch

    from tunegate.models.tool_calls import process_results

    documents = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line][:rows]
    tokenizer.padding_side, scores = "left", []
    for at in range(0, len(documents), BATCH):
        batch = documents[at : at + BATCH]
        texts = [tokenizer.apply_chat_template(d["prompt"], tokenize=False, add_generation_prompt=True) for d in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.no_grad():
            answers = model.generate(**inputs, do_sample=False, max_new_tokens=72, pad_token_id=tokenizer.pad_token_id)
        for document, answer in zip(batch, answers, strict=True):
            text = tokenizer.decode(answer[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            scores.append(process_results(document, [text]))
    return {name: sum(score[name] for score in scores) / max(len(scores), 1) for name in ("valid", "exact")}


def main() -> None:
    """Finds the run's artifacts, asks every model and prints the table."""
    run, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50
    adapter = next(run.glob("kfp/*/train/adapter"))
    dataset = next(run.glob("kfp/*/prepare/prepared"))
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{'':24}{'KL, nats a token':>18}{'top-1':>8}{'valid':>8}{'exact':>8}")
        for name in MODELS:
            m = measure(
                Path(__file__), name, base=str(run / "inputs" / "base_model"), adapter=str(adapter),
                dataset=str(dataset), rows=rows, scratch=scratch,
            )  # fmt: skip
            print(f"{name:24}{m['kl']:18.5f}{m['top1']:8.1%}{m['valid']:8.0%}{m['exact']:8.0%}", flush=True)


if __name__ == "__main__":
    if wanted := asked():
        side(wanted[0], **wanted[1])
    else:
        main()
