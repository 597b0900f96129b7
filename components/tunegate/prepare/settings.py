"""Every setting of prepare."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.overlap import OVERLAP_THRESHOLD
from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class PrepareSettings:
    """How rows are read, checked, cleaned and divided."""

    max_length: int = setting(
        1024, help="the longest row in training, prompt and completion together", unit="tokens", minimum=8
    )
    excess_length_strategy: str = setting(
        "drop",
        help="what happens to a longer row: left out, kept and cut by training, or refused",
        choices=("drop", "truncate", "raise"),
    )
    invalid_rows: str = setting(
        "raise",
        help="what happens to rows that cannot be trained on; both count and name them",
        choices=("raise", "drop"),
    )
    format: str = setting(
        "auto",
        help="the rows' format; 'auto' tells it by the columns and refuses what fits two",
        choices=("auto", "messages", "prompt_completion", "text", "alpaca", "sharegpt"),
    )
    hub_config: str = setting("", help="the configuration of a hub data set, where it has several")
    hub_split: str = setting("train", help="the split of a hub data set that is read, and divided anew here")
    validation_fraction: float = setting(
        0.05, help="share of rows for the loss during training", exclusive_minimum=0.0, maximum=0.5
    )
    evaluation_fraction: float = setting(
        0.25,
        help="share of rows the gate judges on, never trained on: a change of 0.10 needs about 100 of them",
        exclusive_minimum=0.0,
        maximum=0.9,
    )
    near_duplicate_threshold: float = setting(
        0.9, help="Jaccard similarity from which a row repeats an earlier one of its side", minimum=0.5, maximum=1.0
    )
    overlap_strategy: str = setting(
        "drop",
        help="what happens to training and validation rows that an evaluation row resembles",
        choices=("drop", "keep"),
    )
    overlap_threshold: float = setting(
        OVERLAP_THRESHOLD,
        help="Jaccard similarity from which a row gives an evaluation row away",
        minimum=0.5,
        maximum=1.0,
    )
    num_calibration_samples: int = setting(256, help="training rows set aside for quantization", unit="rows", minimum=1)

    def __post_init__(self) -> None:
        if self.validation_fraction + self.evaluation_fraction >= 1:
            raise SettingsError(
                "The fractions leave no row to train on.",
                seen=f"validation {self.validation_fraction} + evaluation {self.evaluation_fraction}",
                expected="a sum below 1",
                remedy="lower evaluation_fraction",
            )
