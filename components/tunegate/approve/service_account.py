"""Service accounts: the cluster itself says whose token it is (TokenReview of authentication.k8s.io/v1)."""

from __future__ import annotations

from typing import Any

from tunegate.approve.tokens import TIMEOUT_SECONDS, refused_token, token_digest
from tunegate.contracts.approval import Identity, Rules
from tunegate.contracts.errors import RunError

#: Where a pod finds the token of its own service account.
POD_TOKEN_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_PREFIX = "system:serviceaccount:"


def verify_service_account(token: str, rules: Rules, api: Any = None) -> Identity:
    """The service account a token is of.

    Args:
        token: a projected token, or the pod's own.
        rules: the audience it must be for; empty: the cluster's own.
        api: a ``kubernetes.client.ApiClient``; that of this pod or of the user's configuration otherwise.

    Raises:
        ApprovalRefused: when the cluster does not know the token, or it is of something else or for somebody else.
        RunError: when the cluster cannot be asked.
    """
    from kubernetes import client

    audiences = [rules.audience] if rules.audience else None
    review = client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token, audiences=audiences))
    try:
        reviewer = client.AuthenticationV1Api(api or _cluster())
        status = reviewer.create_token_review(review, _request_timeout=TIMEOUT_SECONDS).status
    except Exception as error:  # urllib3's, the client's own and those of its configuration have no common class
        told = getattr(error, "status", None) or "no answer"
        raise RunError(
            "The cluster cannot be asked whose token it is.",
            seen=f"{type(error).__name__}: {told}",
            expected="a TokenReview: this service account needs a ClusterRole with create on tokenreviews",
            remedy="bind one as manifests/overlays/*/token-review.yaml do, and nothing wider; or verify tokens as "
            "approve.identity 'oidc' with the cluster's issuer",
        ) from None  # the request it tells of holds the token
    expected = f"a service account's token for {rules.audience or 'this cluster'}"
    if not status.authenticated:
        raise refused_token(status.error or "the cluster does not know it", expected)
    if audiences and not set(audiences) & set(status.audiences or ()):
        raise refused_token(f"for {', '.join(status.audiences or ()) or 'nobody'}", expected)
    if not str(status.user.username).startswith(_PREFIX):
        raise refused_token(f"of {status.user.username}", expected)
    evidence = {"uid": status.user.uid, "audiences": list(status.audiences or ()), "token_sha256": token_digest(token)}
    return Identity(status.user.username, "kubernetes", evidence)


def _cluster() -> Any:
    from kubernetes import client, config

    config.load_config()
    return client.ApiClient()
