"""Google's client for one bucket, and its failures in our words: no address of a session and no token is repeated."""

from __future__ import annotations

import contextlib
import functools
import http
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import InputError, RunError, TunegateError

#: Where a test server is, instead of Google Cloud Storage; Google's own name for it.
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
_CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"

#: How long a first request waits for an answer: a wrong address should be told within a minute.
_FIRST_REQUEST_SECONDS = 20.0


@dataclass(frozen=True)
class Patience:
    """How long a request is waited for.

    Attributes:
        answer_seconds: how long a connection may stay silent.
        total_seconds: for how long a request that failed is sent again, a stall included.
        first_delay_seconds: about how long the first pause is; each is twice the one before, and random up to that, so
            that many clients that were told to slow down (429) do not come back together.
    """

    answer_seconds: float = 60.0
    total_seconds: float = 180.0
    first_delay_seconds: float = 1.0


PATIENCE = Patience()

#: HTTP status → what it means for a bucket, and what to do.
_MEANINGS = {
    400: ("the request was refused", "check the bucket's name"),
    401: ("the credentials were refused", "renew them: gcloud auth application-default login, or the pod's identity"),
    403: ("access is forbidden", "grant this identity the role Storage Object Admin on the bucket"),
    404: ("there is no such bucket", "create the bucket, or correct its name"),
    429: ("too many requests", "try again later"),
}


def patiently() -> dict[str, Any]:
    """The arguments ``timeout`` and ``retry`` of every request: 429, 5xx and broken connections are tried again."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_delay(initial=PATIENCE.first_delay_seconds).with_timeout(PATIENCE.total_seconds)
    return {"timeout": PATIENCE.answer_seconds, "retry": retry}


def open_bucket(name: str) -> Any:
    """The bucket, after it answered once: a missing one would otherwise look like one without objects.

    Raises:
        InputError: when there is no such bucket, no credentials, or no permission to list it.
        RunError: when the server fails or cannot be reached: trying again may help.
    """
    return _connected(name, os.environ.get(EMULATOR_VARIABLE, ""), os.getpid())


@functools.lru_cache(maxsize=8)
def _connected(name: str, emulator: str, process: int) -> Any:
    """One client for each server and process: connections are not shared with a forked child."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    with reported(f"The bucket {name} cannot be used.", as_error=InputError):
        found = _client(anonymous=bool(emulator)).bucket(name)
        retry = DEFAULT_RETRY.with_timeout(_FIRST_REQUEST_SECONDS)
        list(found.list_blobs(max_results=1, fields="items(name)", timeout=_FIRST_REQUEST_SECONDS, retry=retry))
        return found


def _client(*, anonymous: bool) -> Any:
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    if anonymous:
        return storage.Client(project="none", credentials=AnonymousCredentials())
    try:
        credentials, project = google.auth.default()
        return storage.Client(project=project or "none", credentials=credentials)  # objects need no project
    except DefaultCredentialsError as error:
        file = os.environ.get(_CREDENTIALS_VARIABLE)
        raise InputError(
            "There are no credentials for Google Cloud Storage.",
            seen=f"{type(error).__name__}" + (f", {_CREDENTIALS_VARIABLE}={file}" if file else ""),
            expected="application default credentials: of the pod, of this machine, or of a person who logged in",
            remedy="on a cluster, give the step's service account an identity; here, "
            "gcloud auth application-default login",
        ) from error


@contextlib.contextmanager
def reported(failed: str, *, as_error: type[TunegateError] = RunError) -> Iterator[None]:
    """Turns a failure of the client into an error of ours; one that may pass is a RunError, whatever is asked for.

    A lost precondition is let through: it is an answer.
    """
    from google.api_core.exceptions import GoogleAPICallError, PreconditionFailed, RetryError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException

    try:
        yield
    except PreconditionFailed:
        raise
    except GoogleAPICallError as error:
        raise _explained(as_error, failed, int(error.code or 0)) from error
    except InvalidResponse as error:
        raise _explained(as_error, failed, int(error.response.status_code)) from error
    except GoogleAuthError as error:
        raise _explained(as_error, failed, 401, seen=type(error).__name__) from error
    except (RetryError, RequestException, ConnectionError, TimeoutError, DataCorruption) as error:
        raise RunError(
            failed,
            seen=f"no whole answer: {type(error).__name__}",
            expected="a server that answers",
            remedy="check the network and try again: what was finished stays finished",
        ) from error


def _explained(cls: type[TunegateError], failed: str, status: int, *, seen: str = "") -> TunegateError:
    meaning, remedy = _MEANINGS.get(status, ("the server failed", "try again later: what was finished stays finished"))
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = f"status {status}"
    passing = status == http.HTTPStatus.TOO_MANY_REQUESTS or not 400 <= status < 500
    return (RunError if passing else cls)(
        failed,
        seen=f"{meaning} ({seen or phrase})",
        expected="a bucket whose objects can be listed, read, written and deleted",
        remedy=remedy,
    )
