"""deploy on a cluster: what an alias points at gets all the traffic of its service, or what served before serves on."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import GateRefused, TunegateError
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest
from tunegate.contracts.settings import settings_document
from tunegate.deploy.kserve.cluster import Cluster, connect
from tunegate.deploy.kserve.documents import read_template, service_name
from tunegate.deploy.kserve.lease import Lease
from tunegate.deploy.kserve.release import Release, release_of
from tunegate.deploy.kserve.rollout import Rollout
from tunegate.deploy.page import deployment_page
from tunegate.deploy.settings import ClusterSettings, refuse_unusable_names, refuse_unusable_weights
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.serving.flags import ServingFlags
from tunegate.storage.open import open_storage

KIND = "deployment"
DEPLOYMENT_NAME = "deployment.json"
SCHEMA_VERSION = 1

#: What tells of the try and not of what is served: times, and what was seen.
_VOLATILE = (DEPLOYMENT_NAME, "page.html", "summary.json")


def run(
    settings: ClusterSettings,
    flags: ServingFlags,
    signing: SigningSettings,
    *,
    registry: str,
    alias: str,
    output: Path,
    attempt: str = "",
    cluster: Cluster | None = None,
    stopping: threading.Event | None = None,
) -> Manifest:
    """Serves what an alias points at now, and writes the ``deployment`` artifact.

    Args:
        settings: where, how, and what a new version must show.
        flags: the flags of production.
        signing: whose signature counts.
        registry: a folder or URI.
        alias: what is served.
        output: where the artifact will be.
        attempt: what names the task that is tried: what was refused to it once, is refused again at once. Empty: none.
        cluster: where; None: what the pod or the user's kubeconfig says.
        stopping: set when it should end.

    Raises:
        InputError: when there is no such alias, cluster, template or right; or the service is not this alias's.
        GateRefused: when the version shows less than it must. What served before serves on.
        RunError: when servers are not ready in time; likewise; or when the API fails: again, it goes on where it was.
        ConflictError: when somebody else deploys, or changes the service or the alias meanwhile.
        Interrupted: when it should end; the canary has no traffic then.
    """
    refuse_unusable_weights(settings)
    refuse_unusable_names(settings)
    refuse_unusable_signing(signing, signs=False)
    storage = open_storage(registry)
    storage.refuse_absent()
    release = release_of(storage, alias, settings, flags, signing)
    cluster = cluster or connect(settings.namespace)
    service = service_name(alias, settings.service, release.predictor)
    parents = {"version": release.version, "quantized": release.model}
    document = {**settings_document(settings), "serving": settings_document(flags), "registry": storage.uri}
    document |= {"alias": alias, "namespace": cluster.namespace, "service": service}
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    template = read_template(cluster, settings.template)
    with Lease(cluster, service, seconds=settings.lease_seconds) as lease:
        rollout = Rollout(
            cluster, service, release, template, settings, storage, lease, attempt, stopping or threading.Event()
        )
        if why := lease.refusal(attempt):
            refused = GateRefused(
                "This very attempt was refused before: it is not tried on users again.",
                seen=why,
                expected="another version, or a new run",
                remedy="promote another version; or start a new run, which tries this one again",
            )
            with contextlib.suppress(TunegateError):
                rollout.withdraw(refused)
            raise refused
        live = rollout.run()
    return produce(
        output,
        kind=KIND,
        parents=parents,
        settings=document,
        volatile=_VOLATILE,
        build=lambda folder: _write(folder, rollout, release, live.url),
    )


def _write(folder: Path, rollout: Rollout, release: Release, url: str) -> None:
    document = {
        "schema_version": SCHEMA_VERSION,
        "alias": release.alias,
        "record": release.record,
        "version": release.version,
        "model": release.model,
        "replaced": rollout.replaced or None,
        "namespace": rollout.cluster.namespace,
        "service": rollout.service,
        "predictor": release.predictor,
        "url": url,
        "storage_uri": release.storage_uri,
        "probes": len(release.probes.rows) if release.probes else 0,
        "shares": [dataclasses.asdict(figures) for figures in rollout.figures],
    }
    (folder / DEPLOYMENT_NAME).write_bytes(pretty_json(document))
    worst = max((figures.error_rate(rollout.settings.min_requests) for figures in rollout.figures), default=0.0)
    summary = {"alias": release.alias, "version": release.version, "shares": len(rollout.figures), "error_rate": worst}
    (folder / "summary.json").write_bytes(pretty_json(summary))
    (folder / "page.html").write_text(deployment_page(document), "utf-8")
