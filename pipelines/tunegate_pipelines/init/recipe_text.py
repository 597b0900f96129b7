"""A recipe for one's own data: every value is said to mean something, and when it should be another."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.vllm import SERVING_TARGETS
from tunegate.evaluate.documents import COMPLETION_PERPLEXITY
from tunegate.gate.policy import MIN_SLICE_ROWS
from tunegate.models.tool_calls import TOOL_CALL
from tunegate_pipelines.init.asked import TaskRows
from tunegate_pipelines.init.base import Base
from tunegate_pipelines.init.chosen import LARGE_PARAMETERS, MOST_ASKED, Chosen
from tunegate_pipelines.init.commented import Entry, comment, commented
from tunegate_pipelines.init.observed import Observed
from tunegate_pipelines.init.policy_text import Judged, policy_entries

#: With these the adapter's update is scaled by 2.
_RANK, _ALPHA = 16, 32

_NAMED = 5


@dataclass(frozen=True)
class Places:
    """Addresses that the recipe names, each as a command finds it that is started where this one was.

    Attributes:
        recipe: the recipe itself.
        dataset: the data.
        registry: where versions are kept.
        task: the task file; empty where there is none.
        run: where the recipe's head says to put a run.
    """

    recipe: str
    dataset: str
    registry: str
    task: str
    run: str


@dataclass(frozen=True)
class Plan:
    """All that a recipe is written from.

    Attributes:
        places: its addresses.
        base, observed, chosen, task, judged: what was seen, and what follows.
        alias: that moves on PASS.
        serving_target: what will serve.
        serve_check: whether the serving engine is asked before the gate.
    """

    places: Places
    base: Base
    observed: Observed
    chosen: Chosen
    task: TaskRows | None
    judged: Judged
    alias: str
    serving_target: str
    serve_check: bool


def recipe_text(plan: Plan) -> str:
    """The text of the recipe."""
    places = plan.places
    head = (
        f"A recipe for {places.dataset} on {plan.base.address}. It is yours to change; then\n\n"
        f"  tunegate lint {places.recipe}\n"
        f"  tunegate plan {places.recipe}\n"
        f"  tunegate run {places.recipe} --output {places.run}\n\n"
        "say what is wrong with it, what it holds in memory, and run it. Paths start from the folder in which a "
        "command is started. What is not set here has its default: components/tunegate/<step>/settings.py has every "
        "setting with its unit and range."
    )
    sections = [
        Entry("run", _run(plan), "What a person changes from run to run: the run form in KFP."),
        Entry(
            "prepare", _prepare(plan), "How rows are read, checked and divided. A row's side follows from its prompt."
        ),
        Entry("train", _train(plan), "How they are trained on."),
        Entry("quantize", _quantize(plan), "What the merged model becomes for serving."),
        Entry("evaluate", _evaluate(plan), "What the base, the merged and the quantized model are asked."),
        Entry("serve_check", _serve_check(plan), "Whether what serves answers as what was evaluated, before the gate."),
        Entry("gate", [Entry("policy", _policy(plan), _POLICY)], "What must be shown before anything is promoted."),
    ]
    return "\n".join([*comment(head), "", *commented(sections), "", *comment(_APPROVAL)]) + "\n"


_POLICY = "See components/tunegate/gate/README.md."

_APPROVAL = """\
On a cluster a person approves before the alias moves; on this machine, for a registry in a folder, only where the \
recipe says so. components/tunegate/approve/README.md says how people are known.

  approve:
    required: true
    approvers: [somebody@example.com]"""


def _run(plan: Plan) -> list[Entry]:
    base, places, length = plan.base, plan.places, plan.chosen.prepare.max_length
    large = base.parameters > LARGE_PARAMETERS
    return [
        Entry(
            "base_model",
            base.address,
            "A folder with safetensors, or org/name@commit of a hub: a commit, so that a rerun tunes the same model. "
            "It should follow instructions already (…-Instruct, …-it) and bring a chat template.",
        ),
        Entry("dataset", places.dataset, _dataset_why(plan.observed, plan.chosen)),
        Entry("registry", places.registry, "Where versions and aliases are kept: a folder, or gs://bucket/folder."),
        Entry(
            "alias",
            plan.alias,
            "What moves to the new version on PASS, and what users are served. One for each product.",
        ),
        Entry(
            "method",
            "qlora" if large else "lora",
            "lora: an adapter beside a 16-bit base. qlora: beside one in 4 bits, where memory is short (`tunegate "
            "plan` says what fits). adalora: ranks where they matter. full: every weight, for many new facts, with "
            "learning_rate 1e-5.",
        ),
        Entry(
            "r",
            _RANK,
            "The adapter's rank: how much it can hold. 32 or 64 for several languages or much to learn.",
        ),
        Entry("lora_alpha", _ALPHA, "Its update is scaled by lora_alpha / r: keep it twice as large as r."),
        Entry(
            "learning_rate",
            2e-4,
            "Lower it by half when the train page shows a loss that jumps; 1e-4 to 2e-4 for adapters.",
        ),
        Entry("num_train_epochs", plan.chosen.epochs, _epochs_why(plan.chosen)),
        Entry("max_length", length, _length_why(plan)),
        Entry("merge_base", "dequantized", _MERGE_BASE, off=not large),
        Entry(
            "scheme",
            "auto",
            "The format that is served. auto: the best that quantize.serving_target serves as it was evaluated; or "
            "W4A16, W8A8, FP8_DYNAMIC, …",
        ),
        Entry("evaluation_rows", plan.chosen.evaluation_rows, _asked_why(plan.chosen)),
    ]


_MERGE_BASE = (
    "qlora: what the adapter is added to: the 4-bit base as it was trained on, in 16 bits; original, the weights "
    "before that; or measure, whichever is shown to be better."
)


def _dataset_why(observed: Observed, chosen: Chosen) -> str:
    told = (
        f"{observed.read} rows of the format {observed.format} (columns {', '.join(observed.columns)}). JSON Lines, "
        "Parquet, a folder of them, or org/name@commit of a hub; messages, prompt and completion, text, alpaca or "
        "sharegpt."
    )
    sides = {side: len(chosen.of(side)) for side in ("train", "validation", "evaluation")}
    told += f" Of them {sides['train']} train, {sides['validation']} validate and {sides['evaluation']} judge"
    told += f"; {chosen.dropped} repeat others and are left out." if chosen.dropped else "."
    if observed.unusable:
        shown = "; ".join(f"{row.where}: {row.reason}" for row in observed.unusable[:_NAMED])
        told += f" {len(observed.unusable)} cannot be trained on ({shown})."
    return told


def _epochs_why(chosen: Chosen) -> str:
    return (
        f"Passes over the {len(chosen.of('train'))} train rows. Fewer when the validation loss on the train page rises "
        "again before the end, more when it still falls there."
    )


def _length_why(plan: Plan) -> str:
    lengths, longest = plan.observed.lengths, max(plan.observed.lengths.rows, default=0)
    how = "measured with the base's tokenizer" if lengths.measured else f"estimated: {plan.base.absent}"
    told = (
        f"The longest row in training, in tokens, prompt and answer together: memory grows with it. The longest of "
        f"these rows has about {longest} ({how})."
    )
    if plan.chosen.longer:
        told += f" {plan.chosen.longer} of {len(lengths.rows)} are longer and are left out: raise it to keep them."
    elif not lengths.measured:
        told += " prepare counts, and says how many rows are longer and left out."
    return told


def _asked_why(chosen: Chosen) -> str:
    held = sum(len(row.lengths) for row in chosen.of("evaluation"))
    limit = f"The first {MOST_ASKED} of them, in the order of their ids" if chosen.evaluation_rows else "0: all of them"
    return f"How many of the {held} held-out answers each model is asked. {limit}. Fewer are faster and show less."


def _prepare(plan: Plan) -> list[Entry]:
    settings = plan.chosen.prepare
    entries = [
        Entry(
            "evaluation_fraction",
            settings.evaluation_fraction,
            "Share of the rows that the gate judges by, never trained on."
            + (
                f" The rows of {plan.places.task} are these: lower it, and they are trained on and the gate refuses "
                "the run; raise it, and they stay."
                if plan.task
                else ""
            ),
        ),
        Entry(
            "validation_fraction", settings.validation_fraction, "Share for the loss during training, and for parity."
        ),
        Entry(
            "num_calibration_samples", plan.chosen.calibration, "Train rows set aside for quantizing with calibration."
        ),
    ]
    if plan.observed.unusable:
        why = "Rows that cannot be trained on are left out, counted and named. raise: they stop the run."
        entries.append(Entry("invalid_rows", settings.invalid_rows, why))
    return entries


def _train(plan: Plan) -> list[Entry]:
    return [
        Entry(
            "per_device_train_batch_size",
            plan.chosen.batch,
            "Rows of one optimizer step on one device. Memory grows with it; with more of them raise learning_rate a "
            "little. Where memory is short lower it and raise gradient_accumulation_steps.",
        ),
        Entry("per_device_eval_batch_size", plan.chosen.batch, "Not more than that: evaluating must fit as well."),
    ]


def _quantize(plan: Plan) -> list[Entry]:
    return [
        Entry(
            "serving_target",
            plan.serving_target,
            f"The hardware that will serve: {', '.join(SERVING_TARGETS)}. sm80 is an A100, sm89 an L4 or L40S, sm90 an "
            "H100 or H200, sm100 a B200. A scheme is held against it before anything starts.",
        ),
        Entry(
            "num_calibration_samples",
            plan.chosen.calibration,
            "Rows that calibrate, where the scheme needs some; 128 are enough for most.",
        ),
    ]


def _evaluate(plan: Plan) -> list[Entry]:
    task, calls = plan.task, plan.observed.kind == "tool_call"
    tasks = [*([plan.places.task] if task else []), *([TOOL_CALL] if calls else [])]
    why = "Task files of your own, tasks on the data set's held-out rows"
    if not task or task.type != "perplexity":
        tasks.append(COMPLETION_PERPLEXITY)
        why += f" ({COMPLETION_PERPLEXITY}: how likely are the right answers"
        why += f"; {TOOL_CALL}: are the calls right)" if calls else ")"
    why += ", and any task of lm-evaluation-harness by its name, for what must not be unlearnt: gsm8k, ifeval, mmlu."
    if task:
        why += " On a cluster put the folder of task files into a bucket: gs://bucket/tasks/mine.yaml."
    entries = [
        Entry("tasks", tasks, why),
        Entry("max_new_tokens", plan.chosen.max_new_tokens, _answer_why(plan)),
    ]
    if plan.observed.slices:
        sliced = f"Columns by whose values results are sliced: the gate watches each of at least {MIN_SLICE_ROWS} rows."
        entries.append(Entry("tags", list(plan.observed.slices), sliced))
    return entries


def _answer_why(plan: Plan) -> str:
    lengths = plan.observed.lengths
    how = "" if lengths.measured else ", as estimated"
    return (
        f"Where an answer that does not end is cut, in tokens. The longest right one has about {lengths.answer}{how}; "
        "an untuned base rambles to the limit, and takes the time for it."
    )


def _serve_check(plan: Plan) -> list[Entry]:
    why = (
        "vLLM is started on the quantized model's own bytes, and asked what the evaluated model was asked. Without it "
        "nobody knows whether the server answers as what was judged"
    )
    if plan.serve_check:
        return [Entry("enabled", True, f"{why}. It takes vLLM's start and some minutes.")]
    why += ": install vLLM here (make serve-environment), set this to true, and add `serving: {}` to the policy."
    return [Entry("enabled", False, why)]


def _policy(plan: Plan) -> list[Entry]:
    has_form = plan.observed.kind == "tool_call" or (plan.task is not None and plan.task.type == "json")
    return policy_entries(plan.judged, plan.chosen, valid=has_form, served=plan.serve_check, full=False)
