"""Two models on the same tokens: divergence, agreement, the tokens that differ most, and the layer where it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunegate.models.likelihood import Scored, token_kl
from tunegate.models.probe import ProbeRow
from tunegate.parity.trace import Trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class TokenDifference:
    """One token under both models.

    Attributes:
        row_id: its row.
        position: its place among the row's tokens, the prompt's included.
        kl: KL(reference ‖ candidate) before it, in nats.
        expected: the token that the row has there.
        reference_top, candidate_top: what each model finds likeliest.
        reference_probability, candidate_probability: how likely each finds its own.
    """

    row_id: str
    position: int
    kl: float
    expected: int
    reference_top: int
    candidate_top: int
    reference_probability: float
    candidate_probability: float

    @property
    def agrees(self) -> bool:
        """Whether both would write the same token."""
        return self.reference_top == self.candidate_top


@dataclass(frozen=True)
class Difference:
    """A candidate against its reference.

    Attributes:
        tokens: every scored token, row after row.
        layer_errors: ‖H − Ĥ‖ / ‖H‖ (Frobenius) over all scored tokens of the state behind each decoder layer, H being
            the reference's.
    """

    tokens: tuple[TokenDifference, ...]
    layer_errors: tuple[float, ...]

    @property
    def kl(self) -> Array:
        """Of every token, in nats."""
        import numpy as np

        return np.array([token.kl for token in self.tokens])

    @property
    def top1_agreement(self) -> float:
        """The share of tokens that both models would write."""
        return sum(token.agrees for token in self.tokens) / len(self.tokens)

    @property
    def added_errors(self) -> tuple[float, ...]:
        """How much larger each layer's error is than that of the layer before it: an error stays in the states behind
        the layer that makes it, so it is where it grows that something differs."""
        return tuple(
            error - before for before, error in zip((0.0, *self.layer_errors), self.layer_errors, strict=False)
        )

    @property
    def worst_layer(self) -> int | None:
        """The layer that adds most; None when none differs at all."""
        added = self.added_errors
        return added.index(max(added)) if any(self.layer_errors) else None

    def worst_tokens(self, count: int) -> list[TokenDifference]:
        """The tokens that differ most, in order."""
        return sorted(self.tokens, key=lambda token: -token.kl)[:count]


def compare(reference: Trace, candidate: Trace) -> Difference:
    """Compares two models' traces of the same rows.

    The divergence is Kullback and Leibler's (Annals of Mathematical Statistics 22, 1951) over the whole vocabulary.
    """
    import numpy as np

    tokens: list[TokenDifference] = []
    differences: Any = 0.0
    norms: Any = 0.0
    for one, other in zip(reference, candidate, strict=True):
        tokens += _tokens(one.row, one, other)
        gap = one.layers.astype(np.float64) - other.layers
        differences = differences + (gap**2).sum(axis=(1, 2))
        norms = norms + (one.layers.astype(np.float64) ** 2).sum(axis=(1, 2))
    errors = np.sqrt(differences / np.maximum(norms, np.finfo(np.float64).tiny))
    return Difference(tuple(tokens), tuple(float(error) for error in np.atleast_1d(errors)))


def _tokens(row: ProbeRow, reference: Scored, candidate: Scored) -> list[TokenDifference]:
    import numpy as np

    kl = token_kl(reference.log_probs, candidate.log_probs)
    tops = [scored.log_probs.argmax(axis=-1) for scored in (reference, candidate)]
    chances = [np.exp(scored.log_probs.max(axis=-1).astype(np.float64)) for scored in (reference, candidate)]
    return [
        TokenDifference(
            row_id=row.row_id,
            position=row.start + place,
            kl=float(kl[place]),
            expected=token,
            reference_top=int(tops[0][place]),
            candidate_top=int(tops[1][place]),
            reference_probability=float(chances[0][place]),
            candidate_probability=float(chances[1][place]),
        )
        for place, token in enumerate(row.scored_ids)
    ]
