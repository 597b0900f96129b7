"""The servers of a predictor, one by one: which are ready, which digest each answers under, what each has counted.

``Ready`` proves nothing: KServe copies a Deployment's generation, and the old servers are ready too. A server starts
under the digest that it computed of its own files (serving/entrypoint.py), so each is asked for its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunegate.contracts.errors import GateRefused, RunError
from tunegate.deploy.kserve.cluster import Cluster
from tunegate.serving.client import Client

_COUNTED = re.compile(r"^http_requests_total\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Counted:
    """What a server has answered since it started (``http_requests_total`` of vLLM's ``/metrics``)."""

    answered: float = 0.0
    failed: float = 0.0


def ready_urls(cluster: Cluster, servers: str) -> tuple[str, ...]:
    """Where each ready server of a Kubernetes service answers, sorted."""
    found = cluster.read(
        f"/apis/discovery.k8s.io/v1/namespaces/{cluster.namespace}/endpointslices",
        query={"labelSelector": f"kubernetes.io/service-name={servers}"},
    )
    urls = set()
    for piece in (found or {}).get("items") or []:
        ports = [port["port"] for port in piece.get("ports") or [] if port.get("port")]
        for endpoint in piece.get("endpoints") or []:
            if ports and (endpoint.get("conditions") or {}).get("ready") is not False:
                urls |= {f"http://{_host(address, piece)}:{ports[0]}" for address in endpoint["addresses"]}
    return tuple(sorted(urls))


def refuse_other_model(urls: Iterable[str], model: str, alias: str, *, seconds: float) -> None:
    """Asks each server for the digest it serves under, and whether users reach it by the alias.

    Raises:
        GateRefused: when one serves something else, with both names, or does not know the alias.
        RunError: when one does not answer.
    """
    for url in urls:
        served = [found.name for found in Client(url, timeout_seconds=seconds).models()]
        if not served or served[0] != model:
            raise GateRefused(
                "A server serves other bytes than were promoted.",
                seen=f"{url}: {', '.join(served) or 'no model'}",
                expected=model,
                remedy="look at that server's log; the files at its storageUri are not the version's own",
            )
        if alias not in served:
            raise GateRefused(
                "A server does not know the name that users ask for.",
                seen=f"{url}: {', '.join(served)}",
                expected=alias,
                remedy="look at the args of its container: --also names the alias",
            )


def serves(urls: Iterable[str], model: str, alias: str, *, seconds: float) -> bool:
    """Whether there are servers, and each answers under ``model``, and to the alias."""
    urls = tuple(urls)
    try:
        refuse_other_model(urls, model, alias, seconds=seconds)
    except (GateRefused, RunError):
        return False
    return bool(urls)


def counted(url: str, *, seconds: float) -> Counted:
    """How many requests of the API a server has answered, and failed at.

    Raises:
        RunError: when it does not say.
    """
    answered = failed = 0.0
    for line in _COUNTED.finditer(Client(url, timeout_seconds=seconds).metrics()):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels.get("method") == "POST":
            answered += float(line["value"])
            failed += float(line["value"]) if labels.get("status", "").startswith("5") else 0.0
    return Counted(answered, failed)


def _host(address: str, piece: dict[str, object]) -> str:
    return f"[{address}]" if piece.get("addressType") == "IPv6" else address
