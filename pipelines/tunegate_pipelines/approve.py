"""The pipeline ``approve``: how a person answers an approval request in the KFP UI."""

from kfp import dsl

from tunegate.approve.component import decide
from tunegate_pipelines.resources import request as requested


@dsl.pipeline(name="approve", display_name="tunegate approve")  # type: ignore[untyped-decorator,unused-ignore]
def approve(request: str, decision: str, reason: str, registry: str) -> None:
    """Approves or rejects a request, as the service account or ID token of this run.

    Run it with a service account that only approvers may use: whom KFP names as the run's creator is not asked.

    Args:
        request: The request's digest, as its page shows it, or its first letters.
        decision: 'approve' or 'reject'; anything else is refused.
        reason: Why, for the history.
        registry: Where versions and aliases lie: a folder or URI.
    """
    requested(decide(request=request, decision=decision, reason=reason, registry=registry), "decide")
