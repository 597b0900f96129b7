"""How an alias is served: on this machine, and on a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class LocalSettings:
    """The stable address, and when one server takes another's place."""

    host: str = setting("127.0.0.1", help="where the stable address listens")
    port: int = setting(8000, help="where it listens; 0: one that is free", minimum=0, maximum=65535)
    check: str = setting(
        "probes",
        choices=("probes", "none"),
        help="what a new server must answer before it gets a request: what the evaluated model answered, or nothing",
    )
    probes_at_once: int = setting(
        4, unit="probes", minimum=1, help="probes that a new server is asked at the same time; more are sooner done"
    )
    poll_seconds: float = setting(2.0, unit="seconds", help="how often the alias is read", exclusive_minimum=0)
    ready_seconds: float = setting(900.0, unit="seconds", help="how long a server may load", exclusive_minimum=0)
    hung_seconds: float = setting(
        60.0, unit="seconds", exclusive_minimum=0,
        help="how long a server may be unwell, or not say, before it is started again",
    )  # fmt: skip
    drain_seconds: float = setting(
        600.0, unit="seconds", help="how long the requests of a server that was replaced may take to end", minimum=0
    )
    kept_versions: int = setting(
        2, help="how many versions' files are kept, what is served included; the rest is fetched again", minimum=1
    )
    python: str = setting("", help="the Python that holds vLLM; empty: TUNEGATE_SERVE_PYTHON, else .venvs/serve")


@dataclass(frozen=True)
class ClusterSettings:
    """How an alias is served on a cluster, and what a new version must show before it has all traffic."""

    namespace: str = setting("", help="where it is served; empty: the namespace of this pod, or of the kubeconfig")
    service: str = setting("", help="name of the InferenceService; empty: the alias, with '-' for '.' and '_'")
    template: str = setting(
        "tunegate-serving", help="the ConfigMap that holds the InferenceService without a model: inferenceservice.yaml"
    )
    storage_prefix: str = setting(
        "", help="where the cluster reads the registry, for example pvc://models/registry; empty: its own gs:// address"
    )
    replicas: int = setting(1, help="servers of the version that serves", minimum=1)
    weights: tuple[int, ...] = setting(
        (5, 25, 50, 100), unit="percent", help="shares of the traffic that a new version gets, one after the other"
    )
    stage_seconds: float = setting(300.0, unit="seconds", help="how long each share is watched", minimum=0)
    min_requests: int = setting(20, help="requests that are asked at each share at least, and compared", minimum=1)
    max_error_rate: float = setting(
        0.01, help="share of requests that may fail, of those asked and of those of users", minimum=0, maximum=1
    )
    max_latency_ratio: float = setting(
        1.5, help="95th percentile of a request's time, as a multiple of that of what serves", exclusive_minimum=0
    )
    max_latency_seconds: float | None = setting(
        None, unit="seconds", help="95th percentile of a request's time", exclusive_minimum=0
    )
    check: str = setting(
        "probes",
        choices=("probes", "none"),
        help="what each new server must answer: what the evaluated model answered, or nothing; the first before the "
        "version gets any request, those added with a share as soon as they are ready",
    )
    rows_at_once: int = setting(4, help="probes that are under way at the same time", minimum=1)
    cpu: bool = setting(False, help="whether the image's vLLM is a build for a CPU")
    ready_seconds: float = setting(1800.0, unit="seconds", help="how long servers may load", exclusive_minimum=0)
    request_seconds: float = setting(120.0, unit="seconds", help="how long an answer may take", exclusive_minimum=0)
    poll_seconds: float = setting(5.0, unit="seconds", help="how often the cluster is looked at", exclusive_minimum=0)
    lease_seconds: float = setting(
        30.0, unit="seconds", help="after how long without a sign of life another deployment takes over", minimum=1
    )


#: What Kubernetes takes as the name of a namespace, and of most objects (RFC 1123).
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def refuse_unusable_names(settings: ClusterSettings) -> None:
    """Raises SettingsError for names that Kubernetes knows no object by: they become parts of the API's paths."""
    for name, value in (("namespace", settings.namespace), ("template", settings.template)):
        if not _LABEL.fullmatch(value) and (value or name == "template"):
            raise SettingsError(
                f"deploy.{name} is no name of an object of Kubernetes.",
                seen=repr(value),
                expected="1 to 63 letters a to z, digits or '-', no '-' first or last",
                remedy=f"give the name of the {'ConfigMap' if name == 'template' else 'namespace'} alone",
            )


def refuse_unusable_weights(settings: ClusterSettings) -> None:
    """Raises SettingsError for shares of the traffic that do not grow to all of it."""
    weights = settings.weights
    if not weights or list(weights) != sorted(set(weights)) or weights[0] < 1 or weights[-1] != 100:
        raise SettingsError(
            "deploy.weights do not lead to all the traffic.",
            seen=", ".join(map(str, weights)) or "none",
            expected="whole percents from 1, each larger than the one before, the last 100",
            remedy="for example weights: [5, 25, 50, 100]",
        )
