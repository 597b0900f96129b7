"""Stands in for the serving environment's Python where vLLM's load generator would run: takes its options, asks the
server, and writes a result of the same shape. tests/e2e/test_serving.py runs vLLM's own through the same code.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

#: Told by the tests: ``code`` and ``says`` (it prints and ends), ``lacks`` (a key that its result does not have).
TOLD = json.loads(Path(sys.argv[1]).read_text("utf-8"))
NUMBERS = ("random-input-len", "random-output-len", "num-prompts", "seed", "max-concurrency")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", dest="program", required=True)
    for name in ("base-url", "model", "result-dir", "result-filename", "metric-percentiles", "percentile-metrics"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    for name, only in {"backend": "openai", "endpoint": "/v1/completions", "dataset-name": "random"}.items():
        parser.add_argument(f"--{name}", choices=[only], required=True)
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int, required=name != "max-concurrency")
    parser.add_argument("--request-rate", type=float)
    parser.add_argument("--temperature", type=float, choices=[0.0], required=True)
    parser.add_argument("--lora-assignment", choices=["round-robin"], required=True)
    parser.add_argument("--lora-modules", nargs="+", required=True)
    for name in ("save-result", "save-detailed"):
        parser.add_argument(f"--{name}", action="store_true", required=True)
    return parser.parse_args(sys.argv[2:])


def asked(given: argparse.Namespace, model: str) -> dict:
    body = {"model": model, "prompt": "a", "max_tokens": given.random_output_len, "seed": given.seed}
    sent = urllib.request.Request(given.base_url + given.endpoint, json.dumps(body).encode())
    start, error = time.perf_counter(), ""
    try:
        urllib.request.urlopen(sent, timeout=60).read()
    except urllib.error.HTTPError as failure:
        error = str(failure)
    first = time.perf_counter() - start
    gaps = [] if error else [0.001 * (place + 1) for place in range(given.random_output_len - 1)]
    return {"start": start, "ttft": 0.0 if error else first, "itl": gaps, "latency": first + sum(gaps), "error": error}


def main() -> None:
    if "code" in TOLD:
        print(TOLD["says"], flush=True)
        sys.exit(TOLD["code"])
    given = options()
    assert "vllm.benchmarks.serve" in given.program
    assert (given.request_rate is None) != (given.max_concurrency is None)
    assert (given.tokenizer / "tokenizer_config.json").is_file()
    begin = time.perf_counter()
    all_ = [asked(given, given.lora_modules[place % len(given.lora_modules)]) for place in range(given.num_prompts)]
    seconds = time.perf_counter() - begin
    good = [one for one in all_ if not one["error"]]
    tokens = len(good) * given.random_output_len
    result = {
        "start_times": [one["start"] for one in all_],
        "ttfts": [one["ttft"] for one in all_],
        "itls": [one["itl"] for one in all_],
        "latencies": [one["latency"] for one in all_],
        "errors": [one["error"] for one in all_],
        "duration": seconds, "completed": len(good), "failed": len(all_) - len(good),
        "request_throughput": len(good) / seconds, "output_throughput": tokens / seconds,
    }  # fmt: skip
    metrics = {
        "ttft": [one["ttft"] for one in good],
        "tpot": [sum(one["itl"]) / len(one["itl"]) for one in good],
        "itl": [gap for one in good for gap in one["itl"]],
        "e2el": [one["latency"] for one in good],
    }
    for name in given.percentile_metrics.split(","):
        values = np.array(metrics[name] or [0.0]) * 1000
        result[f"mean_{name}_ms"] = float(values.mean())
        for percent in given.metric_percentiles.split(","):
            result[f"p{percent}_{name}_ms"] = float(np.percentile(values, int(percent)))
    result.pop(TOLD.get("lacks", ""), None)
    Path(given.result_dir, given.result_filename).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
