"""The settings of serve_check."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class ServeCheckSettings:
    """On what the served model is held against the evaluated one; how it is served is the section ``serving``."""

    enabled: bool = setting(
        False, help="start vLLM and compare; without it the report says that nothing was checked, and the gate decides"
    )
    python: str = setting(
        "", help="the Python of the serving environment; empty: what TUNEGATE_SERVE_PYTHON names, else .venvs/serve"
    )
    rows: int = setting(
        16, unit="rows", minimum=1, help="validation rows that are asked, the first in the order of their ids"
    )
    max_new_tokens: int = setting(48, unit="tokens", minimum=1, help="where the answer to a validation row is cut")
    max_scored_tokens: int = setting(
        64, unit="tokens", minimum=1, help="tokens of a row's own completion whose log-probabilities are compared"
    )
    evaluation_rows: int = setting(
        0, unit="rows", minimum=0,
        help="evaluation rows that the server answers as well, held against the answers that were evaluated",
    )  # fmt: skip
    rows_at_once: int = setting(
        1, unit="rows", minimum=1,
        help="rows that the server is asked at the same time; more are sooner done, and what is told of its speed is "
        "then of a server with as many users",
    )  # fmt: skip
    batch_size: int = setting(
        4, unit="rows", minimum=2, help="rows that the evaluated model computes together; the noise floor is that, "
        "row by row, and with last bits moved",
    )  # fmt: skip
    noise_runs: int = setting(
        3, unit="runs", minimum=1, help="how often the evaluated model is computed with its last bits moved at random"
    )
    ready_seconds: float = setting(
        1800.0, unit="seconds", exclusive_minimum=0, help="how long vLLM may take until it answers"
    )
