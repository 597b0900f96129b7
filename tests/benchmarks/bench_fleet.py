"""One vLLM with eight adapters against a server for each, and what requests see while an adapter is added.

    python tests/benchmarks/bench_fleet.py [PAGE.html]    writes PAGE-adding.html too

Memory is what the processes of a server hold after a load (PSS: a shared page counts in parts). Separate servers are
measured two at a time, for eight do not fit the time; the sum of eight is eight times the half of both.

An adapter is added under steady load in two ways: to a running vLLM (its own hot loading), and by a second vLLM with
the larger set that is started beside the first, gets the address, and lets the first one's requests end. Each of the
two then has cores of its own, as it would have a GPU of its own; what loading takes from a server on the same cores is
measured after that.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from material import adapters, base_model, merged
from served import COSTS, costs, quiet, read, served
from side import asked, measure, tell

from tunegate.contracts.progress import say
from tunegate.costs.phases import phases
from tunegate.serving.address import Address
from tunegate.serving.envoy_documents import Backend
from tunegate.serving.process import Server

ADAPTERS, SEPARATE = 8, 2
AT_ONCE, REQUESTS = 4, 48

#: The steady load while an adapter is added, and how long it is looked at before and after.
RATE, BESIDE_SECONDS = 0.5, 20.0

SIDES = ("base", "fleet", "separate", "hot loading", "beside")
LABELS = ("base alone", "8 adapters", "separate 1", "separate 2", "hot loading", "cores of its own", "the same cores")
ALLOWED = 1.2


def base() -> None:
    """One server without adapters."""
    with served("base", base_model()) as server:
        costs(LABELS[0], server, at_once=AT_ONCE, requests=REQUESTS, seed=1)
        tell({"started_seconds": server.started_seconds})


def fleet() -> None:
    """One server with every adapter, asked for each of them."""
    names = adapters(ADAPTERS)
    with served("fleet", base_model(), names) as server:
        costs(LABELS[1], server, list(names), at_once=AT_ONCE, requests=REQUESTS, seed=1)
        tell({"started_seconds": server.started_seconds})


def separate() -> None:
    """Two servers at once, each of a merged model and on its half of the cores, that share the load.

    Left alone, vLLM would bind what both compute to the same cores.
    """
    with ExitStack() as stack:
        servers = [
            stack.enter_context(served(f"separate-{number}", merged(f"adapter-{number}"), cores=cores))
            for number, cores in enumerate(halves(), start=1)
        ]
        share = {"at_once": AT_ONCE // SEPARATE, "requests": REQUESTS // SEPARATE}
        loads = [
            threading.Thread(target=costs, args=(f"separate {number}", server), kwargs={**share, "seed": number})
            for number, server in enumerate(servers, start=1)
        ]
        for load in loads:
            load.start()
        for load in loads:
            load.join()
        tell({"started_seconds": servers[0].started_seconds})


def hot_loading() -> None:
    """A ninth adapter is loaded into a running vLLM, and asked for."""
    *_, (new, folder) = adapters(ADAPTERS + 1).items()
    names = adapters(ADAPTERS)
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with served("hot", base_model(), names, cores=halves()[0], max_loras=ADAPTERS + 1, environment=allowed) as server:

        def add(mark: Callable[[str], None]) -> None:
            mark("loading")
            post(f"{server.url}/v1/load_lora_adapter", {"lora_name": new, "lora_path": str(folder.absolute())})
            server.client.complete([1, 2, 3], model=new, max_tokens=8, ignore_eos=True)
            mark("it has answered")

        under_load(LABELS[4], server, add, seconds=BESIDE_SECONDS, begun=lambda: running(server))
        tell({"started_seconds": server.started_seconds})


def beside() -> None:
    """A server with nine adapters takes the address of one with eight; then again, on cores that both use."""
    small, large = adapters(ADAPTERS), adapters(ADAPTERS + 1)
    first, second = halves()
    with ExitStack() as stack:
        address = stack.enter_context(Address(COSTS / "address"))
        old = stack.enter_context(served("beside-1", base_model(), small, cores=first))
        address.switch(Backend("set-1", old.url))
        for number, (label, cores) in enumerate(((LABELS[5], second), (LABELS[6], ())), start=2):
            new: list[Server] = []

            def add(
                mark: Callable[[str], None], number: int = number, cores: Any = cores, new: list[Server] = new
            ) -> None:
                mark("the new server starts")
                new.append(stack.enter_context(served(f"beside-{number}", base_model(), large, cores=cores)))
                mark("switch")
                address.switch(Backend(f"set-{number}", new[0].url))
                address.drain(f"set-{number - 1}", seconds=600.0)
                mark("the old one ends")

            under_load(
                label, old, add, url=address.url, seconds=2.5 * old.started_seconds,
                begun=lambda number=number: address.in_flight(f"set-{number - 1}") > 0,
            )  # fmt: skip
            old.stop()
            address.forget(f"set-{number - 1}")
            old = new[0]
        tell({"started_seconds": old.started_seconds})


def under_load(
    label: str, server: Server, add: Callable[[Callable[[str], None]], None], *, seconds: float,
    begun: Callable[[], bool], url: str = "",
) -> None:  # fmt: skip
    """A steady load for about ``seconds`` and what is looked at before and after; ``add`` happens meanwhile."""
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        say("bench", name)
        marks[name] = time.monotonic()

    requests = round(RATE * (seconds + 2 * BESIDE_SECONDS))
    names = list(adapters(ADAPTERS))
    for name in names:  # before the load, which else would seem to have begun with it
        server.client.complete(list(range(5, 133)), model=name, max_tokens=16, ignore_eos=True)
    load = threading.Thread(
        target=costs, args=(label, server, names),
        kwargs={"url": url, "rate": RATE, "requests": requests, "seed": len(label), "marks": marks, "warm_up": 0},
    )  # fmt: skip
    load.start()
    time.sleep(1.0)
    while load.is_alive() and not begun():  # the generator takes its time
        time.sleep(0.5)
    time.sleep(BESIDE_SECONDS)
    add(mark)
    load.join()


def running(server: Server) -> bool:
    """Whether the server has requests, as its metrics say."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return any(float(line.split()[-1]) > 0 for line in lines if line.startswith("vllm:num_requests_running"))


def post(url: str, body: Mapping[str, str]) -> None:
    """Asks vLLM to do something."""
    sent = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(sent, timeout=600).read()


def halves() -> tuple[list[int], list[int]]:
    """The cores of this machine, half and half."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[: len(cores) // 2], cores[len(cores) // 2 :]


def main() -> None:
    """Runs every side and reports."""
    adapters(ADAPTERS + 1)
    for number in range(1, SEPARATE + 1):
        merged(f"adapter-{number}")
    for side in SIDES:
        measure(Path(__file__), side)
    report()


def report() -> None:
    """Prints the ratios and writes the page."""
    from tunegate.costs.page import costs_page

    found = {label: read(label) for label in LABELS}
    print(f"\n{'':18}{'MB':>8}{'tokens/s':>10}{'first token p50, p95, p99':>30}{'a token p50, p95, p99':>30}   ms")
    for label in LABELS[:4]:
        one = found[label]
        shown = [f"{one.memory_bytes / 1e6:8.0f}{one.answer_tokens_per_second:10.1f}"]
        for metric in ("ttft", "tpot"):
            spread = one.latency[metric]
            shown.append(f"{spread.p50:10.1f}{spread.p95:10.1f}{spread.p99:10.1f}")
        print(f"{label:18}{''.join(shown)}   {quiet(one)}")
    alone, together = found[LABELS[0]].memory_bytes, found[LABELS[1]].memory_bytes
    each = sum(found[label].memory_bytes for label in LABELS[2:4]) / SEPARATE
    print(f"memory {together / alone:.2f} × one server's without adapters (at most {ALLOWED})")
    print(f"memory {together / (ADAPTERS * each):.2f} × that of {ADAPTERS} separate servers ({each / 1e6:.0f} MB each)")
    for label in LABELS[4:]:
        print(f"\n{label}: {told_load(found[label])}; {quiet(found[label])}")
        for phase in phases(found[label]):
            first, gap = phase.first_token_ms, phase.gap_ms
            print(
                f"  {phase.name:24}{phase.requests:4} requests, {phase.failed} failed; first token"
                f"{first[0]:8.0f}{first[1]:8.0f}{first[2]:8.0f} ms; gap{gap[0]:8.0f}{gap[1]:8.0f}{gap[2]:8.0f} ms"
            )
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        for path, labels in ((target, LABELS[:4]), (target.with_stem(f"{target.stem}-adding"), LABELS[4:])):
            path.write_text(costs_page([found[label] for label in labels]), "utf-8")


def told_load(measurement: Any) -> str:
    """The load in a line."""
    from tunegate.costs.settings import told

    return told(measurement.load)


if __name__ == "__main__":
    if wanted := asked():
        {"base": base, "fleet": fleet, "separate": separate, "hot loading": hot_loading, "beside": beside}[wanted[0]]()
    else:
        main()
