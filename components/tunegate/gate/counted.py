"""A verdict with its place in the ledger of its evaluation rows, and a warning when these are worn out."""

from __future__ import annotations

import dataclasses

from tunegate.contracts.files import sha256_json
from tunegate.contracts.verdict import Verdict
from tunegate.gate.policy import Policy
from tunegate.registry.ledger import count_judgement
from tunegate.storage.open import open_storage


def counted(verdict: Verdict, policy: Policy, *, registry: str, rows: str) -> Verdict:
    """The verdict with its number. The same judgement again, a retry, has the same.

    Args:
        verdict: as decided; the number does not change the decision.
        policy: with the number of judgements after which it warns.
        registry: whose ledger counts.
        rows: digest of the evaluation rows.

    Raises:
        InputError: when there is no such registry.
        ArtifactError: when the ledger cannot be read.
    """
    storage = open_storage(registry)
    storage.refuse_absent()
    judgement = sha256_json({"subjects": dict(verdict.subjects), "policy": verdict.policy_digest})
    number = count_judgement(storage, rows, judgement)
    warnings = verdict.warnings
    if number > policy.max_judgements:
        warnings += (
            f"These evaluation rows have judged {number} times, and the policy trusts them for {policy.max_judgements}:"
            " what does well on them may do so by chance, or because it was made to. Take new rows.",
        )
    return dataclasses.replace(verdict, judgement=number, warnings=warnings)
