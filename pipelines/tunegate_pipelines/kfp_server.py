"""KFP's API server, through its own client: what is asked of it, and what its errors mean."""

from __future__ import annotations

import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tunegate.contracts.errors import InputError, RunError, TunegateError
from tunegate_pipelines.cluster import Cluster

T = TypeVar("T")

#: Waits before a question is asked again that the server could not answer. Only reading is asked again: a run that was
#: started though its answer was lost would be started twice.
WAITS_SECONDS = (1.0, 4.0, 15.0)

_PAGE_SIZE = 100
_NOT_SIGNED_IN = (401, 403)
_SHOWN_CHARACTERS = 300


class NotSignedIn(InputError):
    """KFP refuses who asks: there is no token, or one that it takes no longer."""


@dataclass(frozen=True)
class KfpServer:
    """A KFP that answers.

    Attributes:
        client: ``kfp.Client``.
        address: where it is, for errors.
        ui: where its UI is; empty where it is not known.
        namespace: of the runs; empty where there is one user.
        sleep: waits, in seconds.
        renews: whether a token that ended may be another one at the next request: it lies in a file.
    """

    client: Any
    address: str
    ui: str
    namespace: str
    sleep: Callable[[float], None] = time.sleep
    renews: bool = False

    def pipeline_id(self, name: str) -> str | None:
        """The pipeline of that name; None when there is none."""
        found = self._read(
            lambda: self.client.list_pipelines(
                page_size=_PAGE_SIZE, filter=_named("display_name", name), namespace=self.namespace or None
            )
        )
        pipelines = [one for one in found.pipelines or () if name in (one.name, one.display_name)]
        return str(pipelines[0].pipeline_id) if pipelines else None

    def version_id(self, pipeline_id: str, name: str) -> str | None:
        """The version of that name; None when there is none."""
        found = self._read(
            lambda: self.client.list_pipeline_versions(pipeline_id, page_size=_PAGE_SIZE, filter=_named("name", name))
        )
        versions = [one for one in found.pipeline_versions or () if name in (one.name, one.display_name)]
        return str(versions[0].pipeline_version_id) if versions else None

    def upload(self, document: Path, *, pipeline: str, version: str, description: str) -> tuple[str, str]:
        """Uploads a compiled pipeline as a version; one of that name is there already, with these very bytes.

        Returns:
            The ids of pipeline and version.
        """
        pipeline_id = self.pipeline_id(pipeline)
        if pipeline_id is None:
            made = self._write(
                lambda: self.client.upload_pipeline(
                    str(document), pipeline, description=description, namespace=self.namespace or None
                )
            )
            pipeline_id = str(made.pipeline_id)
        version_id = self.version_id(pipeline_id, version)
        if version_id is None:
            uploaded = self._write(
                lambda: self.client.upload_pipeline_version(
                    str(document), version, pipeline_id=pipeline_id, description=description
                )
            )
            version_id = str(uploaded.pipeline_version_id)
        return pipeline_id, version_id

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made where it is missing."""
        made = self._write(lambda: self.client.create_experiment(name, namespace=self.namespace or None))
        return str(made.experiment_id)

    def start(
        self, name: str, *, experiment_id: str, ids: tuple[str, str], parameters: Mapping[str, Any], cluster: Cluster
    ) -> str:
        """Starts a run and returns its id."""
        started = self._write(
            lambda: self.client.run_pipeline(
                experiment_id,
                name,
                params=dict(parameters),
                pipeline_id=ids[0],
                version_id=ids[1],
                pipeline_root=cluster.pipeline_root or None,
                service_account=cluster.service_account or None,
            )
        )
        return str(started.run_id)

    def run(self, run_id: str) -> Any:
        """A run as it is now."""
        return self._read(lambda: self.client.get_run(run_id))

    def recurring_runs(self) -> list[Any]:
        """Every recurring run of the namespace."""
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self._read(partial(self._recurring_page, token))
            found += page.recurring_runs or ()
            token = page.next_page_token or None
        return found

    def _recurring_page(self, token: str) -> Any:
        return self.client.list_recurring_runs(page_token=token, page_size=_PAGE_SIZE, namespace=self.namespace or None)

    def create_recurring_run(self, **arguments: Any) -> str:
        """Creates a recurring run, by the client's own arguments, and returns its id."""
        return str(self._write(lambda: self.client.create_recurring_run(**arguments)).recurring_run_id)

    def set_enabled(self, recurring_run_id: str, enabled: bool) -> None:
        """Enables or disables a recurring run."""
        change = self.client.enable_recurring_run if enabled else self.client.disable_recurring_run
        self._write(lambda: change(recurring_run_id))

    def delete_recurring_run(self, recurring_run_id: str) -> None:
        """Removes a recurring run; runs that it started go on."""
        self._write(lambda: self.client.delete_recurring_run(recurring_run_id))

    def link(self, run_id: str) -> str:
        """Where a person looks at a run."""
        return f"{self.ui}/#/runs/details/{run_id}" if self.ui else f"run {run_id}"

    def _read(self, ask: Callable[[], T]) -> T:
        for wait in WAITS_SECONDS:
            try:
                return _asked(ask, self.address)
            except RunError:
                self.sleep(wait)
        return _asked(ask, self.address)

    def _write(self, ask: Callable[[], T]) -> T:
        return _asked(ask, self.address)


def connect(
    cluster: Cluster, environment: Mapping[str, str], *, sleep: Callable[[float], None] = time.sleep
) -> KfpServer:
    """A KFP that answers, as the cluster file says, or as ``kfp.Client`` finds it.

    Args:
        cluster: where.
        environment: holds the token that ``token_env`` names.
        sleep: waits between two questions.

    Raises:
        InputError: when there is no token in its variable or file, or KFP refuses who asks.
        RunError: when nothing answers.
    """
    token = environment.get(cluster.token_env, "") if cluster.token_env else ""
    if cluster.token_env and not token:
        raise InputError(
            "There is no token for KFP.",
            seen=f"the environment variable {cluster.token_env} is empty",
            expected="a bearer token, as cluster.token_env says",
            remedy=f"export {cluster.token_env}=$(…), for example from gcloud auth print-identity-token",
        )
    if cluster.token_file:
        read_token(cluster.token_file)
    address = cluster.host or environment.get("KF_PIPELINES_ENDPOINT", "") or "the KFP of this pod or kube config"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the client is for KFP 2, which this is
        client = _asked(lambda: _client(cluster, token), address)
    ui = (cluster.ui_host or environment.get("KF_PIPELINES_UI_ENDPOINT", "") or cluster.host).rstrip("/")
    return KfpServer(client, address, ui, cluster.namespace, sleep, renews=bool(cluster.token_file))


def _named(key: str, name: str) -> str:
    """KFP's filter for one name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": name}]})


def read_token(path: str) -> str:
    """The bearer token in a file.

    Raises:
        InputError: when there is none.
    """
    file = Path(path).expanduser()
    try:
        token = file.read_text("utf-8").strip()
        seen = f"{file} is empty"
    except (OSError, UnicodeDecodeError) as error:
        token, seen = "", f"{file}: {type(error).__name__}"
    if not token:
        raise InputError(
            "There is no token for KFP.",
            seen=seen,
            expected="a bearer token in the file that cluster.token_file names",
            remedy=f"write one there, for example: gcloud auth print-identity-token > {file}; and again before it ends",
        )
    return token


@dataclass(frozen=True)
class _TokenFile:
    """What ``kfp.Client`` calls credentials: it asks for the token before each request."""

    path: str

    def refresh_api_key_hook(self, config: Any) -> None:
        config.api_key["authorization"] = read_token(self.path)


def _client(cluster: Cluster, token: str) -> Any:
    import kfp

    class Client(kfp.Client):  # type: ignore[misc,unused-ignore]
        """That asks for KFP's health once: its own asks for half a minute, and then hides why it was refused."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return self._healthz_api.healthz_service_get_healthz()

    return Client(
        host=cluster.host or None,
        namespace=cluster.namespace or "kubeflow",
        existing_token=token or None,
        credentials=_TokenFile(cluster.token_file) if cluster.token_file else None,
        ssl_ca_cert=cluster.ca_file or None,
        ui_host=cluster.ui_host or None,
    )


def _asked(ask: Callable[[], T], address: str) -> T:
    """What KFP answers; what its client prints is kept from the output, which scripts read.

    Raises:
        InputError: when KFP refuses who asks, or what is asked.
        RunError: when it cannot answer.
    """
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return ask()
    except ApiException as error:
        raise _refusal(error.status or 0, _said(error), address) from error
    except HTTPError as error:
        raise RunError(
            f"KFP does not answer at {address}.",
            seen=f"{type(error).__name__}: {str(error)[:_SHOWN_CHARACTERS]}",
            expected="KFP's API server",
            remedy="check `host` of the cluster file, the network, and whether a port-forward still stands",
        ) from error


def _refusal(status: int, said: str, address: str) -> TunegateError:
    if status in _NOT_SIGNED_IN:
        return NotSignedIn(
            f"KFP at {address} refuses who asks.",
            seen=f"HTTP {status}: {said}",
            expected="a token that it takes, of somebody who may do this in the namespace",
            remedy="name the variable with a fresh token in `token_env` of the cluster file, or a renewed file in "
            "`token_file`, and check `namespace`",
        )
    if 400 <= status < 500 and status not in (408, 429):
        return InputError(
            f"KFP at {address} refuses what is asked.",
            seen=f"HTTP {status}: {said}",
            expected="a request that it takes",
            remedy="check host, namespace, experiment and service account of the cluster file",
        )
    return RunError(
        f"KFP at {address} could not answer.",
        seen=f"HTTP {status}: {said}",
        expected="an answer",
        remedy="look in its UI whether what was asked for is there, before asking again; then look at its own log",
    )


def _said(error: Any) -> str:
    """The server's own words, in one line."""
    try:
        document = json.loads(error.body)
        text = str(document.get("error_message") or document.get("message") or document.get("error") or "")
    except (ValueError, TypeError, AttributeError):
        text = str(error.reason or "")
    return " ".join((text or str(error.reason or "no words")).split())[:_SHOWN_CHARACTERS]
