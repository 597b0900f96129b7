"""What a first recipe sets, from what was seen: each number can be decided with the rows there are."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from tunegate.contracts.errors import DataError
from tunegate.gate.betting import betting_bounds
from tunegate.gate.detection import detections
from tunegate.gate.exact import exact_p_value
from tunegate.gate.policy import parse_policy
from tunegate.prepare.clean import clean
from tunegate.prepare.rows import Candidate, side_of
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.split import SIDES, Side
from tunegate.prepare.validate import Length
from tunegate_pipelines.init.observed import Observed

#: The confidence of each bound: the policy's default.
CONFIDENCE = 0.95

#: Losses that a first policy may allow in a share of right answers, and in nats a token; the least that can be shown is
#: taken. A smaller one than the first asks for many rows and is for a person to choose.
MARGINS, NAT_MARGINS = (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.15, 0.2, 0.3, 0.5)

#: How much better than the base the tuned model must be, in the same units.
REQUIRED_GAIN = 0.05

#: What no row's likelihood may lose, in nats a token, and the range of it: see gate/README.md.
MAX_ROW_LOSS, NAT_RANGE = 1.0, (0, 20)

#: What quantizing is taken to cost a row: on the demo's rows INT8 costs 0.007 nats on average.
_COST, _SPREAD = 0.01, 0.05

#: How many held-out rows are looked for: they show a margin of 0.05 or 0.1, and are asked of three models.
_HELD, _FEWEST_HELD = 200, 63
_LEAST_SHARE, _USUAL_SHARE, _MOST_SHARE = 0.05, 0.25, 0.4

#: More rows than this are not asked: what they would add is not worth their time.
MOST_ASKED = 500

#: So many rows make a validation loss and a parity report worth looking at.
_VALIDATION = 16

#: Longer rows are rare, and take memory from all others.
MOST_TOKENS = 4096

#: Epochs by the number of train rows: few rows are seen more often.
_EPOCHS = ((300, 3.0), (2000, 2.0))

#: With more parameters the base is held in 4 bits: 16 bits of it alone fill a GPU of 24 GB.
LARGE_PARAMETERS = 8e9


@dataclass(frozen=True)
class Chosen:
    """The numbers of a first recipe.

    Attributes:
        prepare: how rows are divided; ``max_length`` is the recipe's.
        rows: what is left when duplicates and overlap are left out, each with its side.
        dropped: how many rows that leaves out.
        longer: how many of the rows looked at are longer than ``max_length``.
        max_new_tokens: where an answer is cut.
        epochs, batch: of training.
        calibration: rows that calibrate a quantization.
        evaluation_rows: the recipe's; 0 for all.
    """

    prepare: PrepareSettings
    rows: tuple[Candidate, ...] = field(repr=False)
    dropped: int
    longer: int
    max_new_tokens: int
    epochs: float
    batch: int
    calibration: int
    evaluation_rows: int

    def of(self, side: Side) -> list[Candidate]:
        """The rows of a side."""
        return [row for row in self.rows if row.side == side]

    @property
    def asked(self) -> int:
        """How many held-out rows the data set's tasks ask, one for each answer; lint counts on the average share."""
        answers = sum(len(row.lengths) for row in self.rows)
        held = sum(len(row.lengths) for row in self.of("evaluation"))
        expected = min(held, round(answers * self.prepare.evaluation_fraction))
        return min(expected, self.evaluation_rows) if self.evaluation_rows else expected


def choose(observed: Observed, *, positions: int) -> Chosen:
    """The numbers for these rows.

    Args:
        observed: what was seen.
        positions: how many tokens the base knows; 0 where that is not known.

    Raises:
        DataError: for rows that are too few to be divided.
    """
    room = min(MOST_TOKENS, positions or MOST_TOKENS)
    answer = min(_rounded(observed.lengths.answer * 1.2, 16), room // 2)
    max_length = min(_rounded(max(observed.lengths.rows, default=64), 64), room)
    count = len(observed.examples)
    held = max(_HELD / count, min(_MOST_SHARE, _FEWEST_HELD / count) if count * _USUAL_SHARE < _FEWEST_HELD else 0)
    most = _MOST_SHARE if count * _USUAL_SHARE < _FEWEST_HELD else _USUAL_SHARE
    evaluation = _share(min(max(held, _LEAST_SHARE), most))
    validation = _share(min(max(_VALIDATION / count, 0.02), 0.1))
    settings = PrepareSettings(
        max_length=max_length, evaluation_fraction=evaluation, validation_fraction=validation,
        invalid_rows="drop" if observed.unusable else "raise",
    )  # fmt: skip
    cleaned = clean(_candidates(observed, settings), settings)
    sides = {side: sum(row.side == side for row in cleaned.rows) for side in SIDES}
    if not all(sides.values()):
        raise DataError(
            "The rows are too few to be divided.",
            seen=", ".join(f"{side} {rows}" for side, rows in sides.items())
            + f" of {observed.read} rows, {len(cleaned.dropped)} of which repeat others",
            expected="rows on every side; about 100 different ones are the least that a gate can judge by",
            remedy="give more rows",
        )
    train = sum(len(row.lengths) for row in cleaned.rows if row.side == "train")
    asked = sum(len(row.lengths) for row in cleaned.rows if row.side == "evaluation")
    return Chosen(
        prepare=settings,
        rows=tuple(cleaned.rows),
        dropped=len(cleaned.dropped),
        longer=sum(length > max_length for length in observed.lengths.rows),
        max_new_tokens=answer,
        epochs=next((epochs for rows, epochs in _EPOCHS if train < rows), 1.0),
        batch=4 if train < _EPOCHS[0][0] else 8,
        calibration=max(1, min(128, train // 2)),
        evaluation_rows=MOST_ASKED if asked > MOST_ASKED else 0,
    )


def _candidates(observed: Observed, settings: PrepareSettings) -> list[Candidate]:
    """The rows as prepare divides them; their lengths play no part in that."""
    shares = {"validation_fraction": settings.validation_fraction, "evaluation_fraction": settings.evaluation_fraction}
    return [
        Candidate(example, dict.fromkeys(example.answers or (0,), Length(0, 0)), side_of(example, **shares))
        for example in observed.examples
    ]


def _rounded(value: float, step: int) -> int:
    return max(step, math.ceil(value / step) * step)


def _share(value: float) -> float:
    return math.ceil(value * 100) / 100


def margin(rows: int) -> float | None:
    """The least of :data:`MARGINS` that an equal model would pass most of the time; None where none is."""
    for loss in MARGINS:
        check = {"task": "t", "metric": "m", "candidate": "quantized", "reference": "merged", "margin": loss}
        (found,) = detections(parse_policy({"checks": [check], "confidence": CONFIDENCE}), rows)
        if not found.too_few:
            return loss
    return None


def nat_margin(rows: int) -> float | None:
    """The least of :data:`NAT_MARGINS` that a model can keep that loses as little as quantizing usually costs."""
    import numpy as np

    losses = _usual_losses(rows)
    low, _ = betting_bounds(np.array(losses), lowest=-MAX_ROW_LOSS, highest=NAT_RANGE[1], alpha=1 - CONFIDENCE)
    return next((loss for loss in NAT_MARGINS if low > -loss), None)


def _usual_losses(rows: int) -> Sequence[float]:
    spread = NormalDist(-_COST, _SPREAD)
    losses = [spread.inv_cdf((number + 0.5) / rows) for number in range(rows)]
    random.Random(0).shuffle(losses)
    return losses


def gains_needed(rows: int) -> int:
    """How many rows must become right, and none wrong, to show :data:`REQUIRED_GAIN`."""
    return next((won for won in range(rows + 1) if exact_p_value(won, 0, rows, REQUIRED_GAIN) <= 1 - CONFIDENCE), rows)
