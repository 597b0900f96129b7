"""A memory plan for people: as tables in a terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunegate.contracts.errors import OutputExistsError
from tunegate.contracts.files import write_atomically
from tunegate.contracts.schemes import SCHEMES
from tunegate.contracts.vllm import VLLM
from tunegate.pages.charts import stacked_bars
from tunegate.pages.page import Section, page
from tunegate.pages.parts import facts, paragraph, table
from tunegate.preflight.devices import Fit
from tunegate.preflight.memory import USABLE_SHARE, MemoryPlan, gigabytes
from tunegate.preflight.scheme_choice import SchemeFit
from tunegate_pipelines.plan import Answer, conditions
from tunegate_pipelines.serving_plan import ServingPlan

_GB = 10**9

_SHORT = {"as evaluated": "yes", "otherwise": "otherwise", "no": "no"}
_SERVING = (
    "yes: as it is evaluated; otherwise: it answers, from other numbers than were judged; no: it stops, answers "
    "wrongly, or no group size fits. ←: the recipe's serving target, or this machine. The key-value cache comes on top."
)

_FREE = f"A plan may fill {USABLE_SHARE:.0%} of a GPU. Sizes are as sold, in units of 10⁹ bytes."
_LINES = "Lines in the picture: what can be filled of a GPU."
_CLAIMS = (
    "Published figures are claims to compare with. Planned ones follow from shapes and dtypes; what the process itself "
    "takes is an assumption."
)


def show(answer: Answer, console: Console) -> None:
    """Prints the answer."""
    console.print(Text(f"{answer.model}: {_run(answer)}"), soft_wrap=True)
    for planned in answer.plans:
        console.print()
        console.print(
            Text.assemble((gigabytes(planned.peak_bytes), "bold"), f" with {_way(planned)}; peak: {planned.phase}")
        )
        _print(console, ["part", "bytes", "share", "arithmetic"], _parts(planned), right=(1, 2))
    console.print()
    _print(console, ["GPU", "memory", "fits", "how"], _gpus(answer), right=(1,))
    console.print(Text(_FREE, "dim"))
    if answer.advice:
        console.print()
        console.print(Text(f"To fit {_advised(answer)}, in this order:"))
        _print(console, ["change", "costs", "peak then", "fits"], _advice(answer), right=(2,))
    console.print()
    console.print(Text(f"Served by {VLLM}, the weights of each scheme, and what becomes of it:"))
    _print(console, ["scheme", "weights", "share"], serving_weights(answer.serving), right=(1, 2))
    console.print()
    _print(console, _serving_columns(answer.serving), serving_rows(answer.serving), right=())
    console.print(Text(_SERVING, "dim"))
    if told := serving_told(answer.serving):
        console.print(Text(told), soft_wrap=True)
    if answer.published:
        console.print()
        console.print(Text(f"Published for {conditions()}, and planned:"))
        _print(console, _PUBLISHED_COLUMNS, published_rows(answer), right=(1, 2, 3))
        console.print(Text(_CLAIMS, "dim"))


def write_page(answer: Answer, path: Path) -> None:
    """Writes the answer as a page that loads nothing from anywhere.

    Raises:
        OutputExistsError: when something lies at ``path`` already.
    """
    if path.exists():
        raise OutputExistsError(
            f"{path} exists.",
            seen="a folder or file",
            expected="a new file for a new page",
            remedy=f"choose another --page, or remove {path} yourself",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, plan_page(answer).encode())


def plan_page(answer: Answer) -> str:
    """The answer as a page: what is held at the peak, where it fits, and what to change."""
    sections = [Section("The run", facts(_facts(answer)))]
    for planned in answer.plans:
        rows = table(["part", "bytes", "share", "arithmetic"], _parts(planned))
        heading = f"With {_way(planned)}: {gigabytes(planned.peak_bytes)}"
        sections.append(Section(heading, _bar(answer, planned) + rows, f"The peak: {planned.phase}. {_LINES}"))
    sections.append(Section("GPUs", table(["GPU", "memory", "fits", "how"], _gpus(answer)), _FREE))
    if answer.advice:
        told = paragraph("Each change is made on top of those before it.")
        rows = table(["change", "costs", "peak then", "fits"], _advice(answer))
        sections.append(Section(f"To fit {_advised(answer)}", told + rows))
    sections += _serving_sections(answer.serving)
    if answer.published:
        rows = table(_PUBLISHED_COLUMNS, published_rows(answer))
        sections.append(Section(f"Published for {conditions()}", rows, _CLAIMS))
    return page("Memory plan", sections, subtitle=f"{answer.model}: {_run(answer)}")


def serving_weights(serving: ServingPlan) -> list[list[str]]:
    """What the weights of each scheme take, beside those in 16 bits."""
    sizes = {"not quantized": serving.plain, **serving.weights}
    return [[name, gigabytes(size), f"{size / serving.plain:.0%}"] for name, size in sizes.items()]


def serving_rows(serving: ServingPlan) -> list[list[str]]:
    """One target a row: what becomes of each scheme, and which one ``auto`` takes."""
    return [
        [
            served.target.name + (" ←" if served.target.name == serving.asked else ""),
            *(_SHORT[fit.served] for fit in served.fits),
            served.auto.scheme + (f", groups of {served.auto.group_size}" if served.auto.group_size else ""),
        ]
        for served in serving.targets
    ]


def serving_told(serving: ServingPlan) -> str:
    """What becomes of the recipe's scheme where it will be served; empty where that is not known."""
    taken = serving.taken
    if taken is None:
        return ""
    picked = f"{serving.scheme}, which takes {taken.scheme}" if taken.scheme != serving.scheme else taken.scheme
    return f"scheme {picked} on {taken.target}: {taken.served}; {taken.reason} ({taken.source})"


def _serving_columns(serving: ServingPlan) -> list[str]:
    return ["target", *(fit.scheme for fit in serving.targets[0].fits), "auto takes"]


def _serving_sections(serving: ServingPlan) -> list[Section]:
    where: dict[SchemeFit, list[str]] = {}
    for served in serving.targets:
        for fit in served.fits:
            where.setdefault(replace(fit, target=""), []).append(served.target.name)
    reasons = [[fit.scheme, fit.served, ", ".join(names), fit.reason, fit.source] for fit, names in where.items()]
    reasons.sort(key=lambda row: list(SCHEMES).index(row[0]))
    told = paragraph(serving_told(serving)) if serving.taken else ""
    weights = table(["scheme", "weights", "share"], serving_weights(serving))
    targets = table(_serving_columns(serving), serving_rows(serving))
    return [
        Section(f"Served by {VLLM}", told + weights + targets, _SERVING),
        Section("Why", table(["scheme", "served", "targets", "reason", "source"], reasons)),
    ]


_PUBLISHED_COLUMNS = ["method", "published", "activations computed twice", "activations kept", "why"]


def published_rows(answer: Answer) -> list[list[str]]:
    """The published figures beside our plans, one method a row."""
    return [
        [
            found.method,
            gigabytes(found.published_bytes),
            gigabytes(found.recomputed.peak_bytes),
            gigabytes(found.kept.peak_bytes),
            found.why,
        ]
        for found in answer.published
    ]


def _run(answer: Answer) -> str:
    train, planned = answer.train, answer.plans[0]
    share = planned.trainable_parameters / planned.parameters
    return (
        f"{train['method']}, {train['per_device_train_batch_size']} rows × {train['max_length']:,} tokens; "
        f"{planned.trainable_parameters:,} of {planned.parameters:,} parameters train ({share:.2%})"
    )


def _facts(answer: Answer) -> dict[str, object]:
    train, planned = answer.train, answer.plans[0]
    return {
        "method": train["method"],
        "parameters": planned.parameters,
        "that train": planned.trainable_parameters,
        "rows": train["per_device_train_batch_size"],
        "max_length": train["max_length"],
        "optimizer": planned.optim,
        **{f"peak, {_way(found)}": gigabytes(found.peak_bytes) for found in answer.plans},
    }


def _bar(answer: Answer, planned: MemoryPlan) -> str:
    """What is held at the peak as a bar, with a line where a GPU would be full."""
    parts = {part.name: round(part.bytes / _GB, 2) for part in planned.components}
    sizes: dict[float, list[str]] = {}
    for fit in _asked(answer):
        sizes.setdefault(fit.device.memory_bytes * USABLE_SHARE / _GB, []).append(fit.device.name)
    marks = {", ".join(names): size for size, names in sizes.items()}
    return stacked_bars({_way(planned): parts}, x="GB (10⁹ bytes)", marks=marks)


def _asked(answer: Answer) -> list[Fit]:
    """The GPU that was asked for, or all that are known."""
    return [fit for fit in answer.fits if answer.gpu in (None, fit.device)]


def _way(planned: MemoryPlan) -> str:
    return "activations computed twice" if planned.gradient_checkpointing else "activations kept"


def _parts(planned: MemoryPlan) -> list[list[str]]:
    parts = sorted(planned.components, key=lambda part: -part.bytes)
    return [
        [part.name, gigabytes(part.bytes), f"{part.bytes / planned.peak_bytes:.1%}", part.explanation] for part in parts
    ]


def _gpus(answer: Answer) -> list[list[str]]:
    return [
        [fit.device.name, gigabytes(fit.device.memory_bytes), _yes(fit.choice.fits), fit.choice.reason]
        for fit in _asked(answer)
    ]


def _advice(answer: Answer) -> list[list[str]]:
    return [[found.change, found.cost, gigabytes(found.peak_bytes), _yes(found.fits)] for found in answer.advice]


def _advised(answer: Answer) -> str:
    return answer.advised_gpu.name if answer.advised_gpu else ""


def _yes(found: bool) -> str:
    return "yes" if found else "no"


def _print(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int]) -> None:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        number = place in right
        drawn.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(value, no_wrap=place in right) for place, value in enumerate(row)))
    console.print(drawn)
