"""Quality through the chain: the adapter on its base, both merges, and every scheme, on the same held-out rows.

    python tests/benchmarks/bench_quality.py [RUN] [ROWS]

RUN is the folder of a finished ``tunegate run`` of the demonstration: its base, its data set and its adapter are used.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from material import PLACE
from side import asked, measure, tell

from tunegate.contracts.schemes import AWQ, GPTQ, RTN

RUN, ROWS = "runs/demo", 50
CALIBRATION_ROWS = 32

#: Scheme and algorithm, the quick ones first.
WAYS = (
    ("FP8_DYNAMIC", RTN),
    ("FP8", RTN),
    ("W8A8", GPTQ),
    ("W4A16", GPTQ),
    ("W4A16_ASYM", GPTQ),
    ("W4A16", AWQ),
    ("W4A16_ASYM", AWQ),
)


def artifact(run: str, place: str) -> Path:
    """The newest artifact of a run, for example ``train/adapter``."""
    return max(Path(run).glob(f"kfp/*/{place}"))


def own(name: str) -> Path:
    """Where a model of this benchmark lies."""
    return PLACE / "quality" / name


def merge(run: str, base: str) -> None:
    """Merges the adapter into one of its bases."""
    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run as step

    output = own(base)
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    step(MergeSettings(merge_base=base), base_model=Path(run, "inputs/base_model"),
         adapter=artifact(run, "train/adapter"), output=output)  # fmt: skip
    tell({"seconds": time.monotonic() - start, "folder": str(output)})


def quantize(run: str, scheme: str, algorithm: str) -> None:
    """Quantizes the merge with the dequantized base."""
    from tunegate.quantize.settings import QuantizeSettings
    from tunegate.quantize.step import run as step

    output = own(f"{scheme}-{algorithm}")
    shutil.rmtree(output, ignore_errors=True)
    settings = QuantizeSettings(scheme=scheme, algorithm=algorithm, num_calibration_samples=CALIBRATION_ROWS)
    start = time.monotonic()
    step(settings, model=own("dequantized"), dataset=artifact(run, "prepare/prepared"), output=output)
    tell({"seconds": time.monotonic() - start, "folder": str(output)})


def judge(run: str, folder: str, rows: int) -> None:
    """Tells loss and calls of a model folder, or of the adapter on its base."""
    from tunegate.evaluate.asked import read_tasks
    from tunegate.evaluate.documents import documents, read_rows
    from tunegate.evaluate.harness import measure as ask
    from tunegate.evaluate.harness_model import harness_model
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet
    from tunegate.models.training import read_training
    from tunegate.models.tuned import load_as_trained

    base, adapter = Path(run, "inputs/base_model"), artifact(run, "train/adapter")
    with quiet("lm_eval", "transformers", "datasets"):
        if folder:
            model, tokenizer = load_causal_lm(Path(folder)), load_tokenizer(Path(folder))
        else:
            model, tokenizer = load_as_trained(base, adapter, read_training(adapter) or {}), load_tokenizer(base)
        docs = documents(tokenizer, read_rows(artifact(run, "prepare/prepared"), limit=rows))
        settings = EvaluateSettings(
            tasks=("tool_call", "completion_perplexity"), limit=rows, max_new_tokens=96, noise_rows=0
        )

        def make_model(rendered: bool, rows_at_once: int) -> Any:
            return harness_model(model, tokenizer, batch_size=rows_at_once, rendered=rendered)

        found = {}
        for task in read_tasks(settings.tasks):
            found |= ask(task, settings, make_model=make_model, docs=docs, templated=True)
    weights = sum(path.stat().st_size for path in Path(folder or adapter).glob("*.safetensors"))
    calls, loss = found["tool_call"].aggregates, found["completion_perplexity"].aggregates
    tell({"bytes": weights, "valid": calls["valid"], "exact": calls["exact"], "loss": loss["nll"]})


def main() -> None:
    """Makes every model, judges each and prints the table as it grows."""
    given = sys.argv[1:]
    run, rows = given[0] if given else RUN, int(given[1]) if given[1:] else ROWS
    here = Path(__file__)
    table: dict[str, dict[str, Any]] = {}

    def add(name: str, made: dict[str, Any]) -> None:
        table[name] = {**made, **measure(here, "judge", run=run, folder=made.get("folder", ""), rows=rows)}
        show(table)

    add("adapter on its base", {})
    for base in ("original", "dequantized"):
        add(f"merged, {base}", measure(here, "merge", run=run, base=base))
    for scheme, algorithm in WAYS:
        add(f"{scheme}, {algorithm}", measure(here, "quantize", run=run, scheme=scheme, algorithm=algorithm))


def show(table: dict[str, dict[str, Any]]) -> None:
    """The table as Markdown."""
    print("\n| model | MB | seconds to make | held-out loss | valid calls | exact calls |\n|---|---|---|---|---|---|")
    for name, m in table.items():
        seconds = f"{m['seconds']:.0f}" if "seconds" in m else ""
        size, loss = f"{m['bytes'] / 1e6:.1f}", f"{m['loss']:.4f}"
        print(f"| {name} | {size} | {seconds} | {loss} | {m['valid']:.0%} | {m['exact']:.0%} |", flush=True)


if __name__ == "__main__":
    if wanted := asked():
        {"merge": merge, "quantize": quantize, "judge": judge}[wanted[0]](**wanted[1])
    else:
        main()
