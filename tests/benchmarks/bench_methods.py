"""The four methods side by side on the demonstration's rows, one epoch each, each through the steps of the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

from material import MAX_LENGTH, PLACE, base_model, dataset
from side import asked, measure, peak_bytes, tell

from tunegate.contracts.files import read_json_object

#: Evaluation rows on which calls are counted.
ROWS = 50

#: Method → what differs from the defaults. Few rows want higher rates than the usual ones.
METHODS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 5e-5},
    "lora": {"learning_rate": 4e-4},
    "qlora": {"learning_rate": 4e-4},
    "adalora": {"learning_rate": 4e-3, "init_r": 24},
}
COMMON = {"max_length": MAX_LENGTH, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}


def train(method: str) -> None:
    """Trains and tells throughput, peak and size."""
    from tunegate.train.settings import TrainSettings
    from tunegate.train.step import run

    output = PLACE / method
    shutil.rmtree(output, ignore_errors=True)
    run(TrainSettings(method=method, **COMMON, **METHODS[method]), base_model=base_model(), dataset=dataset(),
        output=output)  # fmt: skip
    rates = [step["tokens_per_second"] for step in read_json_object(output / "timings.json")["tokens_per_second"]]
    tell({
        **read_json_object(output / "summary.json"), "tokens_per_second": median(rates), "peak_bytes": peak_bytes(),
        "size_bytes": sum(file.stat().st_size for file in output.glob("*.safetensors")),
    })  # fmt: skip


def exact(method: str) -> None:
    """Merges and tells the share of exact calls of the merged model."""
    from tunegate.evaluate.settings import EvaluateSettings
    from tunegate.evaluate.step import run as evaluate
    from tunegate.merge.settings import MergeSettings
    from tunegate.merge.step import run as merge

    merged, evaluation = PLACE / f"{method}-merged", PLACE / f"{method}-evaluation"
    for folder in (merged, evaluation):
        shutil.rmtree(folder, ignore_errors=True)
    merge(MergeSettings(), base_model=base_model(), adapter=PLACE / method, output=merged)
    settings = EvaluateSettings(tasks=("tool_call",), limit=ROWS, max_new_tokens=96)
    evaluate(settings, model=merged, dataset=dataset(), output=evaluation)
    tell(read_json_object(evaluation / "summary.json"))


def main() -> None:
    """Runs every method and prints the table."""
    dataset()
    here = Path(__file__)
    found = {
        method: {**measure(here, "train", method=method), **measure(here, "exact", method=method)} for method in METHODS
    }
    heads = f"{'tokens/s':>9}{'peak GB':>9}{'trainable':>13}{'size MB':>9}{'val. loss':>11}{'valid':>7}{'exact':>7}"
    print(f"\n{'':9}{heads}")
    for method, m in found.items():
        print(
            f"{method:9}{m['tokens_per_second']:9.1f}{m['peak_bytes'] / 1e9:9.2f}{m['trainable_parameters']:13,}"
            f"{m['size_bytes'] / 1e6:9.1f}{m['validation_loss']:11.4f}"
            f"{m['tool_call.valid']:7.0%}{m['tool_call.exact']:7.0%}"
        )
    overhead = found["lora"]["tokens_per_second"] / found["qlora"]["tokens_per_second"] - 1
    print(f"QLoRA takes {overhead:.0%} more time a token than LoRA (published: 20 to 50 %)")


if __name__ == "__main__":
    if wanted := asked():
        {"train": train, "exact": exact}[wanted[0]](wanted[1]["method"])
    else:
        main()
