"""A task file for held-out rows, with what each line means."""

from __future__ import annotations

from collections.abc import Mapping

from tunegate.gate.policy import MIN_SLICE_ROWS
from tunegate_pipelines.init.asked import ANSWER, ID, QUESTION, SYSTEM, TaskRows
from tunegate_pipelines.init.chosen import Chosen
from tunegate_pipelines.init.commented import Entry, comment, commented

_TYPES = """\
How an answer is scored. Others are
  exact_match      the answer is the text (ignore_case: true where case does not matter)
  regex            a pattern is found in it, and its group is the text: for a number at the end of a long answer
  multiple_choice  the right one of a list of choices is the likeliest: for a base that does not follow instructions
  json             the answer is JSON of the same value
  tool_call        one JSON call of a known function, with allowed arguments
  perplexity       how likely the answer is, where no text is the only right one
  python           a function of your own, from an installed package"""

_REASONS: Mapping[str, str] = {
    "exact_match": "These answers are a few words: right is who says them.",
    "json": "These answers are JSON: right is the same value, however it is spaced and ordered.",
    "perplexity": "These answers are free text, of which none is the only right one.",
}


def task_text(task: TaskRows, chosen: Chosen, *, data: str, source: str) -> str:
    """The text of the task file.

    Args:
        task: what is asked.
        chosen: how the rows were held out.
        data: the name of the file with its rows, beside the task file.
        source: what the rows were taken from, as a person calls it.
    """
    head = (
        f"The task {task.name}: {len(task.rows)} rows of {source} that no training ever sees, asked and scored. "
        "The recipe names this file in evaluate.tasks, and the policy calls it by its name.\n\n"
        "Every type with its keys: components/tunegate/evaluate/README.md"
    )
    entries = [
        Entry("name", task.name, "What the policy and the pages call it: a-z, 0-9 and _."),
        Entry("type", task.type, f"{_TYPES}\n\n{_REASONS[task.type]}"),
        Entry("data", data, _data_why(task, chosen)),
        Entry("row_id", ID, "The column that names a row in reports. Keep a row's id when you correct the row."),
    ]
    if task.system:
        entries.append(Entry("system", f"{{{{{SYSTEM}}}}}", "The system message that the row was written with."))
    if any(QUESTION in row for row in task.rows):
        entries.append(
            Entry(
                "prompt",
                f"{{{{{QUESTION}}}}}",
                "What the user says, rendered with the model's chat template. {{…}} is a column of the rows, and there "
                "may be text around it; ask as your users will.",
            )
        )
    entries.append(Entry("answer", f"{{{{{ANSWER}}}}}", "The right answer, likewise."))
    if task.tags:
        why = (
            "Columns by whose values results are sliced. The gate watches every slice of at least "
            f"{MIN_SLICE_ROWS} rows: a model "
            "that is better on average and worse in one of them is refused. Add columns that you would not want to "
            "lose: a language, a customer, a difficulty."
        )
        entries.append(Entry("tags", list(task.tags), why))
    if task.type == "exact_match":
        entries.append(Entry("ignore_case", True, "Set it where Billing and billing are one answer.", off=True))
    return "\n".join([*comment(head), "", *commented(entries)]) + "\n"


def _data_why(task: TaskRows, chosen: Chosen) -> str:
    left_out = (
        f" {task.left_out} more were left out, because a row to train on asks nearly the same." if task.left_out else ""
    )
    return (
        "The rows, one JSON object a line, beside this file. They are the ones whose prompts prepare holds out "
        f"(evaluation_fraction {chosen.prepare.evaluation_fraction:g}): rows that you add to the data later never move "
        f"them to the train side.{left_out} Add rows of your own, written by hand: they must not be in the data that "
        "is trained on, or the gate refuses the run. More rows show smaller differences."
    )
