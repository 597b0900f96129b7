"""Every setting of evaluate, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class EvaluateSettings:
    """What is asked of a model, and how."""

    tasks: tuple[str, ...] = setting(
        ("tool_call", "completion_perplexity"),
        help="tasks on the data set's rows (tool_call, completion_perplexity), task files of your own (tasks/my.yaml) "
        "and any task of lm-evaluation-harness",
    )
    tags: tuple[str, ...] = setting(
        (), help="columns of the data set by whose values the results on its rows are sliced"
    )
    limit: int = setting(
        0, help="evaluate only the first rows in the order of their ids, the same for every model; 0: all", unit="rows",
        minimum=0,
    )  # fmt: skip
    batch_size: int = setting(32, help="rows that are answered together", unit="rows", minimum=1)
    max_new_tokens: int = setting(
        128, help="where an answer that does not end is cut, in our own tasks", unit="tokens", minimum=1
    )
    dtype: str = setting(
        "auto", help="what to compute in; auto: bfloat16 on a GPU, float32 on a CPU",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    noise_rows: int = setting(
        4, help="rows of each task that are asked again in other batches, to measure the noise floor; 0: none",
        unit="rows", minimum=0,
    )  # fmt: skip
    seed: int = setting(0, help="seed of every random generator; answers are greedy", minimum=0)
