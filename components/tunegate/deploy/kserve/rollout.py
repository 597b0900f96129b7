"""A release, brought from nothing to all traffic, or back: what to do is read from the cluster, wherever it stands.

::

    nothing ──────────────────────────────────────────────▶ serves (proven, or stopped)
    another serves ─▶ canary at 0 % ─▶ 5 % ─▶ … ─▶ 100 % ─▶ serves
                          │ digests, probes  │ errors, times
                          └──────────────────┴─▶ no canary: the other one serves on

What serves is never written: it is said again as it was read. KServe ends its servers only when the canary, which had
all the traffic by then, takes its place; that this will be taken is rehearsed before the canary has any. Whoever is
killed leaves a canary at some share; the next try goes on there.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunegate.contracts.errors import ConflictError, GateRefused, InputError, Interrupted, RunError, TunegateError
from tunegate.contracts.progress import say
from tunegate.deploy.kserve import documents
from tunegate.deploy.kserve.analysis import Figures, Watch, broken_limits
from tunegate.deploy.kserve.cluster import Cluster
from tunegate.deploy.kserve.documents import Live
from tunegate.deploy.kserve.lease import Lease
from tunegate.deploy.kserve.release import Release, points_elsewhere
from tunegate.deploy.kserve.servers import ready_urls, refuse_other_model, serves
from tunegate.deploy.settings import ClusterSettings
from tunegate.serving.client import Client
from tunegate.serving.probes import check_probes
from tunegate.storage.interface import Storage

TASK = "deploy"

#: How often a write is tried anew that met another one: each time it is decided from what is there then.
_TRIES = 20


@dataclass
class Rollout:
    """One attempt.

    Attributes:
        cluster, service: where.
        release: what.
        template: the InferenceService without a model.
        settings: what it must show.
        storage: the registry's: the alias may move meanwhile.
        lease: held.
        attempt: what is refused to it is kept there.
        stopping: set when it should end.
        figures: what was seen at each share of the traffic.
        replaced: the version that served before; empty for none.
    """

    cluster: Cluster
    service: str
    release: Release
    template: Mapping[str, Any]
    settings: ClusterSettings
    storage: Storage
    lease: Lease
    attempt: str
    stopping: threading.Event
    figures: list[Figures] = field(default_factory=list)
    replaced: str = ""
    _before: str = ""
    _asked: set[str] = field(default_factory=set)

    def run(self) -> Live:
        """Brings the release to all traffic; returns the service as it is then. A second time changes nothing.

        Raises:
            GateRefused: when it answers otherwise, fails, is slow or serves other bytes; what served before serves on.
            RunError: when its servers are not ready in time; likewise.
            ConflictError: when the alias points elsewhere by now, or somebody else changes the service.
            Interrupted: when it should end; the canary has no traffic then, and the same command goes on.
        """
        live = self._read()
        if live is None or live.stopped:
            return self._first(live)
        if live.name == self.release.predictor:
            return self._serving(live)
        self.replaced, self._before = live.version, live.name
        try:
            self._canary(live)
            self._promote()
        except TunegateError as error:
            self._refused(error)
            with contextlib.suppress(
                TunegateError
            ):  # why it goes back is told, whether it could be brought back or not
                self._back(error)
            raise
        return self._proven()

    def withdraw(self, error: GateRefused) -> None:
        """Takes away what an earlier try that was refused could not: a canary, or a first version.

        Raises:
            TunegateError: when that cannot be done now either.
        """
        live = self._read()
        if live is None:
            return
        self._before = live.name
        if live.canary(self.release.predictor) is not None:
            self._back(error)
        elif live.name == self.release.predictor and not self.lease.proven and not live.stopped:
            self._written(documents.stopped)

    def _first(self, live: Live | None) -> Live:
        """Nothing runs: there is nothing to be a canary beside."""
        say(TASK, f"nothing serves {self.release.alias} yet: starting {self.release.version[:12]} as {self.service}")
        made = documents.first(
            self.template, self.service, self.cluster.namespace, self.release, replicas=self.settings.replicas
        )
        path = documents.service_path(self.cluster, self.service)
        if live is not None:
            made["metadata"]["resourceVersion"] = live.document["metadata"]["resourceVersion"]
            self._refuse_stopped_by_others(self.cluster.apply(path, made, rehearsal=True))
        self.lease.note_proven("")  # what was proven before is not what starts now
        if self.cluster.apply(path, made) is None:
            raise self._changed("it was made or changed meanwhile")
        return self._proven_or_stopped()

    def _refuse_stopped_by_others(self, would_be: Mapping[str, Any] | None) -> None:
        """What we stopped starts with our next word; a stop of somebody else's stays, and no server would start."""
        if would_be is not None and Live(would_be).stopped:
            raise InputError(
                f"The InferenceService {self.service} was stopped by somebody else.",
                seen="the annotation serving.kserve.io/stop, which is not of tunegate's",
                expected="a service that may run",
                remedy=f"kubectl annotate inferenceservice {self.service} serving.kserve.io/stop-, and deploy again",
            )

    def _serving(self, live: Live) -> Live:
        """It has its place already: an earlier try was killed, or this is said again, or with more or less servers."""
        self._refuse_other_form(live)
        say(TASK, f"{self.release.version[:12]} has its place already: asking it")
        if not self.lease.proven:
            return self._proven_or_stopped()
        self._applied(lambda live: documents.alone(live, self.settings.replicas))
        return self._proven()

    def _refuse_other_form(self, live: Live) -> None:
        """What would be said to be served must be what is."""
        made = documents.predictor(self.template, self.release, replicas=self.settings.replicas)
        if not documents.serves_alike(live.predictor, made):
            raise ConflictError(
                f"Version {self.release.version[:12]} is served in another form than is asked: nothing was changed.",
                seen=_form(live.predictor),
                expected=_form(made),
                remedy="ask for the form that is served (storage_prefix, the section 'serving', the template), or "
                "promote another version: one version is served in one form",
            )

    def _proven_or_stopped(self) -> Live:
        """What was never proven and replaced nothing does not go on."""
        try:
            self._applied(lambda live: documents.alone(live, self.settings.replicas))
            return self._proven()
        except ConflictError:
            raise
        except (GateRefused, RunError, Interrupted) as error:
            self._refused(error)
            with contextlib.suppress(TunegateError):  # the cause is told, whether it could be stopped or not
                self._written(documents.stopped)
                say(TASK, f"{self.service} is stopped: nothing serves {self.release.alias}")
            raise

    def _refused(self, error: Exception) -> None:
        """Keeps a refusal before anything else is tried: the next try of this task must not meet users again."""
        if isinstance(error, GateRefused):
            with contextlib.suppress(TunegateError):
                self.lease.note_refused(self.attempt, error.failed)

    def _canary(self, live: Live) -> None:
        """From the share that an earlier try reached to all traffic."""
        made = documents.predictor(self.template, self.release, replicas=1)
        tried = live.canary(self.release.predictor)
        reached = live.weight(self.release.predictor) if tried and documents.serves_alike(tried, made) else None
        self._rehearse(made if reached is None else tried or made)
        if reached is None:
            say(TASK, f"{live.version[:12] or live.name} serves; {self.release.version[:12]} is tried beside it")
            self._applied(lambda live: documents.with_canary(live, made, 0))
        else:
            say(TASK, f"{self.release.version[:12]} is tried already, with {reached} % of the traffic: going on there")
        for weight in (0, *self.settings.weights):
            if weight >= (reached or 0):
                self._stage(weight)

    def _rehearse(self, made: Mapping[str, Any]) -> None:
        """Whether the promotion would be taken, and would be of what is tried.

        Raises:
            ConflictError: when somebody else owns a field that it changes.
            InputError: when KServe refuses it; or when the template lacks a field of what serves: the canary inherits
                that from KServe, and would start anew without it in the moment of its promotion.
        """
        for _ in range(_TRIES):
            live = self._now()
            document = documents.promoted(live, {**made, "minReplicas": self.settings.replicas})
            would_be = self.cluster.apply(documents.service_path(self.cluster, self.service), document, rehearsal=True)
            if would_be is not None:
                break
        else:
            raise self._changed(f"{_TRIES} writes met others")
        if gone := documents.lost(live.predictor, Live(would_be).predictor):
            raise InputError(
                "The template lacks fields of what serves: the new version would be tried with them and serve without.",
                seen=f"{len(gone)} field(s) of the predictor that serves are not in the template any more",
                expected="the same fields, of whatever values",
                remedy="say these fields in the template with the values they are to have; or remove the "
                "InferenceService and deploy anew, which serves nothing meanwhile",
                items=gone,
            )

    def _stage(self, weight: int) -> None:
        """One share of the traffic, until it has shown what it must."""
        self._refuse_moved_alias()
        written = self._applied(
            lambda live: documents.with_canary(live, self._tried(live, self._count(live, weight)), weight)
        )
        count = self._count(written, weight)
        name = self.release.predictor
        self._until(
            lambda: self._now().reached(name, weight) and len(self._canary_urls()) >= count,
            f"{count} server(s) ready, and {weight} % of the traffic on them",
        )
        say(TASK, f"{self.release.version[:12]} has {weight} % of the traffic")
        self._prove()
        if weight:
            self._watch(weight)

    def _count(self, live: Live, weight: int) -> int:
        return documents.replicas_at(weight, self.settings.replicas, live)

    def _watch(self, weight: int) -> None:
        """Asks, counts and compares for as long as the settings say; a limit that is broken ends it early.

        Raises:
            GateRefused: naming the limits.
        """
        settings = self.settings
        watch = Watch(weight, self.release.model, self.release.alias, self.release.probes, settings.request_seconds)
        begin = time.monotonic()
        while True:
            live = self._now()
            urls, others = self._prove(), ready_urls(self.cluster, documents.servers_of(self.service, live.name))
            watch.count(urls)
            passed = (time.monotonic() - begin) / settings.stage_seconds if settings.stage_seconds else 1.0
            for place in range(watch.asked, max(watch.asked + 1, math.ceil(min(passed, 1.0) * settings.min_requests))):
                watch.ask(urls[place % len(urls)], others[place % len(others)] if others else "", live.model)
                self._pause(0)
            watch.count(urls)
            if broken := broken_limits(watch.figures, settings):
                self.figures.append(watch.figures)
                raise GateRefused(
                    f"Version {self.release.version[:12]} does not keep its limits with {weight} % of the traffic.",
                    seen=f"{len(broken)} limit(s) broken",
                    expected="failures and times as the section 'deploy' allows them",
                    remedy="look at the logs of its servers; promote another version, or say other limits",
                    items=broken,
                )
            if passed >= 1.0:
                break
            self._refuse_moved_alias()
            self._pause(min(settings.poll_seconds, max(settings.stage_seconds - time.monotonic() + begin, 0)))
        self.figures.append(watch.figures)

    def _prove(self) -> tuple[str, ...]:
        """Every server of the release: the digest each time, the probes once.

        Returns:
            Their addresses, at least one.

        Raises:
            GateRefused: when one serves other bytes, or answers otherwise than the evaluated model.
            RunError: when one does not answer, or there is none.
        """
        try:
            urls = self._named()
        except RunError:  # a server may end between being listed and being asked: it is not listed the next time
            self._pause(self.settings.poll_seconds)
            urls = self._named()
        for url in urls:
            if url not in self._asked:
                self._ask_probes(url)
                self._asked.add(url)
        return urls

    def _named(self) -> tuple[str, ...]:
        urls = self._canary_urls()
        if not urls:
            raise RunError(
                f"No server of version {self.release.version[:12]} is ready any more.",
                seen="no ready address",
                expected="at least one",
                remedy="look at the log of its pods",
            )
        refuse_other_model(urls, self.release.model, self.release.alias, seconds=self.settings.request_seconds)
        return urls

    def _tried(self, live: Live, replicas: int) -> dict[str, Any]:
        """The canary as it is there, whose servers were asked: made anew, it might be another by now."""
        found = live.canary(self.release.predictor)
        if found is None:
            raise self._changed("the canary is gone")
        return {**found, "minReplicas": replicas}

    def _ask_probes(self, url: str) -> None:
        release, settings = self.release, self.settings
        if release.probes is None:
            return
        client = Client(url, timeout_seconds=settings.request_seconds, patience_seconds=settings.request_seconds)
        found = check_probes(client, release.model, release.probes, release.limits, at_once=settings.rows_at_once)
        if not found.passed:
            raise GateRefused(
                f"Version {release.version[:12]} does not answer on the cluster as what was evaluated.",
                seen=f"{len(found.reasons)} of the policy's limits on answers are not kept at {url}",
                expected="the evaluated answers, up to rounding",
                remedy="compare the cluster's accelerator and vLLM with those of the check before promotion",
                items=found.reasons,
            )

    def _promote(self) -> None:
        """The canary, which has all the traffic, takes its place; its servers go on."""
        self._refuse_moved_alias()
        self._applied(self._promoted)
        say(TASK, f"{self.release.version[:12]} takes the place of {self.replaced[:12] or 'what served'}")

    def _promoted(self, live: Live) -> dict[str, Any]:
        if live.name == self.release.predictor:  # an answer that was lost after success
            return documents.alone(live, self.settings.replicas)
        return documents.promoted(live, self._tried(live, self.settings.replicas))

    def _proven(self) -> Live:
        """Returns when every server of the release, and as many as are wanted, answers under its digest."""
        count = self.settings.replicas
        self._until(lambda: len(self._canary_urls()) >= count, f"{count} server(s) ready")
        self._prove()
        self.lease.note_proven(self.release.predictor)
        live = self._now()
        say(TASK, f"{self.release.alias} is served by {self.release.model[:12]} at {live.url or self.service}")
        return live

    def _back(self, error: Exception) -> None:
        """Takes the canary away, or, where somebody only asked for a pause, its traffic; what served serves on."""
        self.lease.refuse_lost()
        name = self.release.predictor
        live = self._now()
        if live.name == name:  # the answer to its promotion was lost: it serves, and the next try asks it
            return
        if isinstance(error, Interrupted):
            if live.weight(name):
                self._written(lambda live: documents.with_canary(live, self._tried(live, 1), 0))
            return
        if live.canary(name) is None:
            return
        say(TASK, f"rolling back: {str(error).splitlines()[0]}")
        live = self._written(lambda live: documents.without_canary(live, name))
        others = ready_urls(self.cluster, documents.servers_of(self.service, live.name))
        if serves(others, live.model, self.release.alias, seconds=self.settings.request_seconds):
            say(TASK, f"{live.version[:12] or live.name} serves on")
        else:
            say(TASK, f"{live.version[:12] or live.name} has all the traffic again, and did not serve before either")

    def _canary_urls(self) -> tuple[str, ...]:
        return ready_urls(self.cluster, documents.servers_of(self.service, self.release.predictor))

    def _read(self) -> Live | None:
        return documents.read_live(self.cluster, self.service, self.release.alias)

    def _now(self) -> Live:
        live = self._read()
        if live is None:
            raise self._changed("it is gone")
        return live

    def _applied(self, change: Callable[[Live], dict[str, Any]]) -> Live:
        """Writes a change; not when it should end."""
        self._pause(0)
        return self._written(change)

    def _written(self, change: Callable[[Live], dict[str, Any]]) -> Live:
        """Decides a change from what is there now, and writes it over exactly that.

        Raises:
            ConflictError: when what serves is another one than when this began, or the lease is lost.
        """
        for _ in range(_TRIES):
            self.lease.refuse_lost()
            live = self._now()
            if live.name not in (self.release.predictor, self._before):
                raise self._changed(f"{live.version[:12] or live.name} serves by now")
            document = change(live)
            if self._same(live, document):
                return live
            written = self.cluster.apply(documents.service_path(self.cluster, self.service), document)
            if written is not None:
                return Live(written)
        raise self._changed(f"{_TRIES} writes met others")

    def _same(self, live: Live, document: Mapping[str, Any]) -> bool:
        """Whether nothing would change."""
        spec = live.document["spec"]
        wanted = document["spec"]
        if not document["metadata"]["annotations"].items() <= live.annotations.items():
            return False
        return bool(spec["predictor"] == wanted["predictor"] and live.canaries == wanted["canary"])

    def _refuse_moved_alias(self) -> None:
        moved = points_elsewhere(self.storage, self.release)
        if moved:
            raise ConflictError(
                f"{self.release.alias} points at another version by now: this one is not deployed.",
                seen=moved,
                expected=self.release.version[:12],
                remedy="deploy again: what the alias points at now is taken",
            )

    def _until(self, reached: Callable[[], bool], expected: str) -> None:
        ends = time.monotonic() + self.settings.ready_seconds
        while not reached():
            if time.monotonic() > ends:
                raise self._too_late(expected)
            self._pause(self.settings.poll_seconds)

    def _pause(self, seconds: float) -> None:
        """Waits, while this is still ours to drive."""
        if self.stopping.wait(seconds):
            raise Interrupted(
                "The deployment was asked to stop.",
                seen="a signal to end",
                expected="time until the new version has all the traffic",
                remedy="start it again: it goes on where it was",
            )
        self.lease.refuse_lost()

    def _too_late(self, expected: str) -> RunError:
        status = self._now().document.get("status") or {}
        items = [f"{c['type']} {c['status']}: {c.get('reason', '')} {c.get('message', '')}".rstrip()
                 for c in status.get("conditions") or [] if c["status"] != "True"]  # fmt: skip
        for where in (status, *(status.get("canaryStatuses") or [])):
            if why := (where.get("modelStatus") or {}).get("lastFailureInfo"):
                items.append(f"{why.get('reason', '')}: {why.get('message', '')} (exit code {why.get('exitCode')})")
        return RunError(
            f"Version {self.release.version[:12]} was not ready in time.",
            seen=f"{len(self._canary_urls())} server(s) ready after {self.settings.ready_seconds:.0f} s",
            expected=expected,
            remedy="look at its pods; KServe must be 0.21 or later and route by the Gateway API to split traffic",
            items=items,
        )

    def _changed(self, seen: str) -> ConflictError:
        return ConflictError(
            f"Somebody else changes the InferenceService {self.service}.",
            seen=seen,
            expected="what this deployment left there",
            remedy="find out who, and deploy again",
        )


def _form(predictor: Mapping[str, Any]) -> str:
    """What starts a predictor's servers, in one line."""
    model = predictor.get("model") or {}
    return f"{model.get('storageUri')} {' '.join(map(str, model.get('args') or []))} {model.get('image', '')}".rstrip()
