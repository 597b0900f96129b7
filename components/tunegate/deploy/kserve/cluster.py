"""The cluster's API through the Kubernetes client: read, server-side apply, and what its refusals mean for a person.

Documents stay plain dicts: the client has no classes for KServe's kinds, and one way of asking serves all of them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ConflictError, InputError, RunError, TunegateError

#: Who owns the fields that are applied (metadata.managedFields).
FIELD_MANAGER = "tunegate-deploy"

#: Where a pod reads its namespace.
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_APPLY = "application/apply-patch+yaml"
_LONGEST_PAUSE_SECONDS = 8.0

#: Answers after which the same request is sent again: every write here is the same when it is done twice.
_AGAIN = (
    HTTPStatus.TOO_MANY_REQUESTS,
    *(status for status in HTTPStatus if status >= 500),
)


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster.

    Attributes:
        client: a ``kubernetes.client.ApiClient``.
        namespace: where everything lies.
        patience_seconds: how long a server that fails or is busy is asked again, later each time.
        request_seconds: how long it may take to connect, and then to answer.
    """

    client: Any
    namespace: str
    patience_seconds: float = 60.0
    request_seconds: float = 30.0

    def read(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """The object or list at a path of the API; None when there is no such object.

        Raises:
            InputError: when the cluster does not know the kind, or this account may not read it.
            RunError: when the API does not answer.
        """
        return self._asked("GET", path, query=query)

    def apply(self, path: str, document: Mapping[str, Any], *, rehearsal: bool = False) -> dict[str, Any] | None:
        """Applies a document server-side, and takes no field from another manager.

        Args:
            path: the object's.
            document: all that we say of it. With ``metadata.resourceVersion``, it replaces that version alone.
            rehearsal: whether it is only found out what would come of it.

        Returns:
            The object as it is then, or would be; None when somebody wrote it since it was read.

        Raises:
            ConflictError: when another manager owns a field and says something else, naming both.
            InputError: when the cluster refuses the document, or this account.
            RunError: when the API does not answer.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": "false", "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if rehearsal else {}
        return self._asked("PATCH", path, query=query, body=document, kind=_APPLY)

    def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """Creates an object in the collection at ``path``; None when it is there. Errors as :meth:`apply`."""
        return self._asked("POST", path, query={"fieldManager": FIELD_MANAGER}, body=document)

    def replace(self, path: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replaces an object of the stated resourceVersion; None when that is no longer it. Errors as :meth:`apply`."""
        return self._asked("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=document)

    def _asked(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
    ) -> dict[str, Any] | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        ends, pause = time.monotonic() + self.patience_seconds, 0.25
        while True:
            try:
                answer = self.client.call_api(
                    path, method, query_params=list((query or {}).items()),
                    header_params={"Accept": "application/json", "Content-Type": kind},
                    body=body,
                    auth_settings=["BearerToken"], response_type="object", _return_http_data_only=True,
                    _request_timeout=(self.request_seconds, self.request_seconds),  # it waits for ever on a mere float
                )  # fmt: skip
                return dict(answer)
            except ApiException as error:
                if _is_no_object(error, method):
                    return None
                if not error.status:
                    raise _silent(error.reason.partition("\n")[0]) from None  # TLS
                if error.status not in _AGAIN or time.monotonic() + pause > ends:
                    raise _refusal(error, method, path) from None  # the client's own text holds headers
            except HTTPError as error:
                if time.monotonic() + pause > ends:
                    raise _silent(type(error).__name__) from None  # its text names the request's headers
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def connect(namespace: str = "") -> Cluster:
    """The cluster of this pod, or of the user's kubeconfig.

    Args:
        namespace: where to work; empty: the pod's own, or that of the current context.

    Raises:
        InputError: when there is no configuration, or it names no namespace.
    """
    from kubernetes import client, config

    try:
        config.load_config()
        if not namespace and _OWN_NAMESPACE.is_file():
            namespace = _OWN_NAMESPACE.read_text("utf-8").strip()
        elif not namespace:
            namespace = config.list_kube_config_contexts()[1]["context"].get("namespace", "")
    except (config.ConfigException, OSError, KeyError, TypeError) as error:
        raise InputError(
            "There is no cluster to deploy to.",
            seen=f"{type(error).__name__}: {error}",
            expected="the service account of a pod, or a kubeconfig",
            remedy="run it in the cluster (the pipeline `deploy`), or set KUBECONFIG",
        ) from error
    if not namespace:
        raise InputError(
            "It is not said which namespace to deploy to.",
            seen="none in the settings, and none in the current context",
            expected="a namespace",
            remedy="give --namespace, or 'namespace' in the section 'deploy' of the recipe",
        )
    return Cluster(client.ApiClient(), namespace)


def _is_no_object(error: Any, method: str) -> bool:
    """Whether the object is absent, is there already, or was written since it was read."""
    if error.status == HTTPStatus.NOT_FOUND:
        return bool(_status(error)) and method != "POST"  # a kind or namespace that is not there is another matter
    return bool(error.status == HTTPStatus.CONFLICT) and not _held_by_others(error)


def _held_by_others(error: Any) -> list[dict[str, str]]:
    causes = (_status(error).get("details") or {}).get("causes") or []
    return [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]


def _refusal(error: Any, method: str, path: str) -> TunegateError:
    """What a refusal means."""
    if error.status == HTTPStatus.CONFLICT:
        held = _held_by_others(error)
        return ConflictError(
            "Somebody else has set what would be deployed: nothing was changed.",
            seen=f"{len(held)} field(s) of {path.rpartition('/')[2]} with another owner",
            expected=f"fields that {FIELD_MANAGER} set, or equal values",
            remedy="undo that change (kubectl get -o yaml --show-managed-fields says whose it is), and deploy again",
            items=[f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in held],
        )
    code = error.status
    seen = f"HTTP {code} to {method} {path}: {_status(error).get('message') or error.reason or 'no reason given'}"
    if code in _AGAIN:
        return RunError(
            "The cluster's API fails.", seen=seen, expected="an answer",
            remedy="run it again when the API is well: it goes on where it was; what serves was not touched",
        )  # fmt: skip
    if code == HTTPStatus.NOT_FOUND:
        return InputError(
            "The cluster does not know what would be deployed.", seen=seen,
            expected="KServe (serving.kserve.io/v1beta1), and a namespace that exists",
            remedy="install KServe with the Gateway API, or name another namespace",
        )  # fmt: skip
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return InputError(
            "This account may not do what a deployment needs.", seen=seen,
            expected="the rights of the Role tunegate-deployer (manifests/base/serving/rights.yaml)",
            remedy="start the run as the service account tunegate-deployer, or bind that Role to this one",
        )  # fmt: skip
    return InputError(
        "The cluster refuses what would be deployed.", seen=seen, expected="an InferenceService that KServe takes",
        remedy="change the template (manifests/base/serving), and deploy again; what serves was not touched",
    )  # fmt: skip


def _silent(seen: str) -> RunError:
    return RunError(
        "The cluster's API does not answer.",
        seen=seen,
        expected="an answer",
        remedy="check the network to the API; run it again: it goes on where it was",
    )


def _status(error: Any) -> dict[str, Any]:
    """The ``Status`` an API answers with; empty when it is something else, as for a kind that is not there."""
    try:
        found = json.loads(error.body or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}
