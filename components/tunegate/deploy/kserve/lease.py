"""One driver for each service: a Lease that it renews while it works, as the controllers of Kubernetes elect theirs.

The next driver takes a Lease over that was not renewed for its own duration, by this machine's clock and not by the
times in it. What the next one must know is beside it: KServe hands annotations of an InferenceService on to its pods,
which would start anew, so nothing that changes may stand there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from tunegate.contracts.errors import ConflictError, RunError, TunegateError
from tunegate.deploy.kserve.cluster import Cluster

_KIND = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
_PROVEN = "tunegate.dev/proven"
_REFUSED = "tunegate.dev/refused"
_POLL_SECONDS = 1.0

#: The share of its duration for which a renewal is relied on without asking.
_SURE = 2 / 3


class Lease:
    """The right to change one service, held from entering to leaving.

    Args:
        cluster: where.
        name: the service's.
        seconds: after how long without a sign of life another driver may take over.

    Raises:
        ConflictError: when another driver is alive.
    """

    def __init__(self, cluster: Cluster, name: str, *, seconds: float) -> None:
        self._cluster = cluster
        self._brief = dataclasses.replace(  # a renewal that waits longer than until the next one is due is none
            cluster, patience_seconds=min(cluster.patience_seconds, seconds / 4), request_seconds=max(1.0, seconds / 4)
        )
        self._name, self._seconds = f"{name}-tunegate", seconds
        self._renewed = 0.0
        self._me = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._lost: str = ""
        self._annotations: dict[str, str] = {}
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def proven(self) -> str:
        """The predictor that was proven last and got all traffic; empty before the first."""
        return self._annotations.get(_PROVEN, "")

    def refusal(self, attempt: str) -> str:
        """Why an earlier try of this attempt was refused; empty when it was not."""
        found = json.loads(self._annotations.get(_REFUSED, "{}"))
        return str(found.get("why", "")) if attempt and found.get("attempt") == attempt else ""

    def note_proven(self, predictor: str) -> None:
        """Keeps which predictor was proven."""
        self._note(_PROVEN, predictor)

    def note_refused(self, attempt: str, why: str) -> None:
        """Keeps why an attempt was refused, so that a retry of the same task does not try it on users again."""
        if attempt:
            self._note(_REFUSED, json.dumps({"attempt": attempt, "why": why}))

    def refuse_lost(self) -> None:
        """Lets only the holder go on. Who was paused or cut off for too long must renew first.

        Raises:
            ConflictError: when another driver has taken over: it decides now.
            RunError: when that cannot be told.
        """
        if not self._lost and time.monotonic() - self._renewed > self._seconds * _SURE:
            try:
                self._write(holder=self._me)
            except TunegateError as error:
                raise RunError(
                    f"The right to change the service could not be renewed ({self._name}).",
                    seen=error.seen,
                    expected=f"a renewal each {self._seconds * _SURE:.0f} s: after that, another may have taken over",
                    remedy="run it again when the API is well: it goes on where it was",
                ) from error
        if self._lost:
            raise ConflictError(
                f"Another deployment has taken over {self._name}.",
                seen=self._lost,
                expected="one driver at a time",
                remedy="leave it to the other one; nothing more was changed from here",
            )

    def __enter__(self) -> Lease:
        seen, since, taken = None, time.monotonic(), time.monotonic()
        while True:
            found = self._cluster.read(self._path)
            spec = (found or {}).get("spec") or {}
            if spec.get("holderIdentity") == self._me:
                self._annotations = dict((found or {})["metadata"].get("annotations") or {})
                self._renewed = taken
                self._thread.start()
                return self
            holder, mark = spec.get("holderIdentity"), (spec.get("holderIdentity"), spec.get("renewTime"))
            if seen is None:
                seen, since = mark, time.monotonic()
            elif holder and mark != seen:  # a sign of life
                raise self._alive(spec)
            waited = time.monotonic() - since
            if not holder or waited >= float(spec.get("leaseDurationSeconds", self._seconds)):
                taken = time.monotonic()
                self._take(found)  # who has it then is read, and not believed: an answer may be lost after success
                seen = None
            else:
                time.sleep(min(_POLL_SECONDS, self._seconds / 4))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        with contextlib.suppress(TunegateError):  # what is not given back runs out by itself
            if not self._lost:
                self._write(holder="")

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._name}"

    @property
    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._cluster.namespace}/leases"

    def _take(self, found: dict[str, Any] | None) -> None:
        if found is not None:
            self._cluster.replace(self._path, {**found, "spec": self._spec(self._me)})
            return
        metadata = {"name": self._name, "labels": {"app.kubernetes.io/managed-by": "tunegate"}}
        self._cluster.create(self._collection, {**_KIND, "metadata": metadata, "spec": self._spec(self._me)})

    def _renew(self) -> None:
        while not self._left.wait(self._seconds / 3):
            with contextlib.suppress(TunegateError):  # the next one may do better; whoever writes is held to the time
                self._write(holder=self._me)
            if self._lost:
                return

    def _note(self, name: str, value: str) -> None:
        self._annotations[name] = value
        self._write(holder=self._me)
        self.refuse_lost()

    def _write(self, *, holder: str) -> None:
        """Writes the Lease anew while it is ours."""
        with self._lock:
            while True:
                begun = time.monotonic()
                found = self._brief.read(self._path)
                owner = ((found or {}).get("spec") or {}).get("holderIdentity")
                if found is None or owner != self._me:
                    self._lost = f"held by {owner or 'nobody'}"
                    return
                found["metadata"]["annotations"] = {**found["metadata"].get("annotations", {}), **self._annotations}
                if self._brief.replace(self._path, {**found, "spec": self._spec(holder)}) is not None:
                    self._renewed = begun
                    return

    def _spec(self, holder: str) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"holderIdentity": holder, "leaseDurationSeconds": max(1, round(self._seconds)), "renewTime": now}

    def _alive(self, spec: dict[str, Any]) -> ConflictError:
        return ConflictError(
            f"Another deployment is at work on this service ({self._name}).",
            seen=f"driver {str(spec.get('holderIdentity', ''))[:12]}, alive at {spec.get('renewTime')}",
            expected="one deployment at a time",
            remedy="wait until it has ended, and deploy again",
        )
