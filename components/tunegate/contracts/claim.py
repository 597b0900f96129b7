"""A retraining's claim on an alias: the lease that it holds, its token, and what its version is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.contracts.errors import InputError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Claim:
    """What a retraining shows when it promotes.

    Attributes:
        lease: name of the lease.
        token: the number that it was given; a greater one since means that it was overtaken.
        made_from: sha256 over data, base and recipe, by which the next one knows whether anything changed.
    """

    lease: str
    token: int
    made_from: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def parse_claim(document: Mapping[str, Any]) -> Claim | None:
    """The claim in a parameter or a request; None where there is none: nothing was claimed by whoever runs once.

    Raises:
        InputError: for a document that is neither empty nor a claim: it is never taken for none.
    """
    if not document:
        return None
    try:
        claim = Claim(**document)
        token = int(claim.token)  # KFP hands numbers of a dict parameter over as doubles
        if token != claim.token or not isinstance(claim.lease, str) or not _SHA256.fullmatch(claim.made_from):
            raise ValueError("a lease, a whole number and a sha256 are needed")
    except (TypeError, ValueError) as error:
        raise InputError(
            "The claim of a retraining cannot be read.",
            seen=f"{dict(document)!r}: {error}",
            expected="lease, token and made_from, as the step begin-retrain gives them",
            remedy="start the retraining anew",
        ) from error
    return Claim(claim.lease, token, claim.made_from)


def refuse_foreign_claim(claim: Claim | None, alias: str) -> None:
    """Refuses to move an alias under the claim on another one: nobody who claimed that alias would be asked.

    Raises:
        InputError: naming both.
    """
    if claim is not None and claim.lease != alias:
        raise InputError(
            f"The claim of a retraining is not on the alias {alias}.",
            seen=f"a claim on {claim.lease}",
            expected=f"a claim on {alias}, as the step begin-retrain of the same run gives it",
            remedy="start the retraining anew, with one alias",
        )
