"""Every setting of evaluate, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
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
    backend: str = setting(
        "transformers", help="what computes: transformers here, or a vLLM server that speaks OpenAI's interface",
        choices=("transformers", "openai"),
    )  # fmt: skip
    base_url: str = setting(
        "", help="openai: where the server listens (http://host:8000); it must serve the model under its content digest"
    )
    api_key_variable: str = setting("", help="openai: the environment variable that holds the server's key; '': no key")
    request_timeout_seconds: float = setting(
        300.0, help="openai: how long an answer may take", unit="seconds", exclusive_minimum=0
    )
    patience_seconds: float = setting(
        120.0, help="openai: how long a server that is busy (429, 503) is asked again", unit="seconds", minimum=0
    )
    noise_rows: int = setting(
        4, help="rows of each task that are asked again in other batches, to measure the noise floor; 0: none",
        unit="rows", minimum=0,
    )  # fmt: skip
    seed: int = setting(0, help="seed of every random generator; answers are greedy", minimum=0)

    def __post_init__(self) -> None:
        served = self.backend == "openai"
        if served == bool(self.base_url):
            return
        raise SettingsError(
            "evaluate.backend and evaluate.base_url do not go together.",
            seen=f"backend {self.backend}, base_url {self.base_url or 'empty'}",
            expected="backend: openai with the address of a server, or transformers without one",
            remedy="set base_url" if served else "set backend: openai, or leave base_url out",
        )


#: Settings that say how a server is reached: they change no result, and are no part of what it is known by.
REACHED_BY = ("base_url", "api_key_variable", "request_timeout_seconds", "patience_seconds")
