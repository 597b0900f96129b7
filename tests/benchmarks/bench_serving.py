"""An adapter served beside its base against the same adapter merged: latency, throughput and memory of two vLLMs.

    python tests/benchmarks/bench_serving.py [PAGE.html]

One server after the other on the same prompts: one request at a time, as one user sees it, then four at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from material import adapters, base_model, merged
from served import costs, quiet, read, served
from side import asked, measure, tell

ADAPTER = "adapter-1"
SIDES = ("merged", "adapter")

#: How many at once → requests.
LOADS = {1: 16, 4: 48}


def label(side: str, at_once: int) -> str:
    """What a measurement is called."""
    return f"{side}, {at_once} at once"


def run(side: str) -> None:
    """Serves one side and measures it under each load."""
    alone = side == "merged"
    folder = merged(ADAPTER) if alone else base_model()
    with served(side, folder, {} if alone else {ADAPTER: adapters(1)[ADAPTER]}) as server:
        names = [] if alone else [ADAPTER]
        for at_once, requests in LOADS.items():
            costs(label(side, at_once), server, names, at_once=at_once, requests=requests, seed=at_once)
        tell({"started_seconds": server.started_seconds})


def line(side: str, at_once: int) -> dict[str, Any]:
    """What is shown of a measurement."""
    found = read(label(side, at_once))
    ttft, tpot = found.latency["ttft"], found.latency["tpot"]
    return {
        "first token p50": ttft.p50, "p95": ttft.p95, "p99": ttft.p99,
        "a token p50": tpot.p50, "p95 ": tpot.p95, "p99 ": tpot.p99,
        "tokens/s": found.answer_tokens_per_second, "MB": (found.memory_bytes or 0) / 1e6,
    }  # fmt: skip


def main() -> None:
    """Runs both sides and reports."""
    adapters(1)
    for side in SIDES:
        measure(Path(__file__), side)
    report()


def report() -> None:
    """Prints the ratios and writes the page."""
    from tunegate.costs.page import costs_page

    for at_once in LOADS:
        lines = {side: line(side, at_once) for side in SIDES}
        lines["ratio"] = {name: lines["adapter"][name] / value for name, value in lines["merged"].items()}
        print(f"\n{at_once} at once; ms" + "".join(f"{name:>17}" for name in lines["merged"]))
        for side, found in lines.items():
            print(f"{side:15}" + "".join(f"{value:17.2f}" for value in found.values()))
    for side in SIDES:
        print(f"{side}: {quiet(read(label(side, 1)))}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(
            costs_page([read(label(side, at_once)) for at_once in LOADS for side in SIDES]), "utf-8"
        )


if __name__ == "__main__":
    if wanted := asked():
        run(wanted[0])
    else:
        main()
