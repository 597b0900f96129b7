"""An alias on KServe: a new version shows itself before it has traffic, and whatever goes wrong, what served serves on.

The Kubernetes client is the real one, and its documents are held to KServe's own schema and admission rules.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import Publish
from tests.deploy.kserve.cluster import TOKEN, FakeCluster, Fault
from tests.deploy.kserve.schema import inference_service, wrong
from tests.deploy.kserve.servers import Behaviour, Pod
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.errors import (
    ArtifactError,
    ConflictError,
    GateRefused,
    InputError,
    Interrupted,
    RunError,
    SettingsError,
)
from tunegate.contracts.manifest import verify
from tunegate.deploy import step
from tunegate.deploy.kserve.analysis import Watch, percentile
from tunegate.deploy.kserve.cluster import Cluster, connect
from tunegate.deploy.kserve.lease import Lease
from tunegate.deploy.kserve.servers import Counted, counted
from tunegate.deploy.launcher import launch
from tunegate.deploy.settings import ClusterSettings
from tunegate.registry.aliases import promote, read_alias, rollback
from tunegate.registry.settings import SigningSettings
from tunegate.serving.flags import ServingFlags
from tunegate.serving.probes import ProbeToken
from tunegate.storage.open import open_storage

ROOT = Path(__file__).parents[2]
NAMESPACE = "tunegate-prod"
ISVCS = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices"
ENGINE = {"dtype": "bfloat16", "max_model_len": 0, "enforce_eager": False, "kv_cache_memory_bytes": 0, "options": ""}

#: Far longer than anything here takes.
PATIENCE_SECONDS = 60.0

QUICK: dict[str, Any] = {
    "weights": (50, 100), "stage_seconds": 0.0, "min_requests": 4, "max_latency_ratio": 1000.0, "poll_seconds": 0.02,
    "ready_seconds": 20.0, "lease_seconds": 1.0, "storage_prefix": "gs://models/registry", "request_seconds": 5.0,
}  # fmt: skip


class World:
    """A registry, and a cluster that it is deployed to."""

    def __init__(self, place: Path, publish: Publish, cluster: FakeCluster) -> None:
        self.place, self._publish, self.cluster = place, publish, cluster
        (place / "registry").mkdir()
        self.storage = open_storage(str(place / "registry"))
        self.models: dict[str, str] = {}
        self.tries = 0
        template = (ROOT / "manifests/base/serving/inferenceservice.yaml").read_text("utf-8")
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/tunegate-serving"
        cluster.put(path, {"metadata": {"name": "tunegate-serving"}, "data": {"inferenceservice.yaml": template}})
        self.kubeconfig = place / "kubeconfig"
        context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context],
            "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
        }  # fmt: skip
        self.kubeconfig.write_text(json.dumps(config))

    def promote(self, text: str, behaviour: Behaviour | None = None, **told: Any) -> str:
        """Publishes a version, moves the alias to it, and says how its servers will behave; returns its digest."""
        version, model = self._publish(self.storage, text, ENGINE, **told)
        self.models[version] = model
        self.cluster.behaviours[model] = behaviour or Behaviour()
        alias = read_alias(self.storage, "champion")
        promote(self.storage, alias, version, verdict="v", attempt=f"{version} after {alias.record}")
        return version

    def behaviour(self, version: str) -> Behaviour:
        return self.cluster.behaviours[self.models[version]]

    def connected(self, *, patience_seconds: float = 3.0) -> Cluster:
        """The real client, with a real kubeconfig."""
        return dataclasses.replace(connect(NAMESPACE), patience_seconds=patience_seconds)

    def deploy(self, *, attempt: str = "", stopping: threading.Event | None = None, **changed: Any) -> dict[str, Any]:
        """Deploys what the alias points at; what the step says of it."""
        self.tries += 1
        output = self.place / f"deployment-{self.tries}"
        step.run(
            ClusterSettings(**(QUICK | changed)), ServingFlags(), SigningSettings(),
            registry=str(self.place / "registry"), alias="champion", output=output, attempt=attempt,
            cluster=self.connected(), stopping=stopping,
        )  # fmt: skip
        verify(output, kind="deployment")
        assert (output / "page.html").is_file()
        return dict(json.loads((output / "deployment.json").read_text()))

    @property
    def serving(self) -> tuple[str, list[tuple[str, int]]]:
        """The version that serves, and what is tried beside it with which share of the traffic."""
        spec = self.cluster.service()["spec"]
        tried = [
            (canary["predictor"]["annotations"]["tunegate.dev/version"], canary["trafficPercent"])
            for canary in spec.get("canary", [])
        ]
        return spec["predictor"]["annotations"]["tunegate.dev/version"], tried

    def servers(self, version: str) -> list[Any]:
        """The running servers of a version."""
        return self.cluster.pods.get(f"champion-v{version[:10]}-predictor", ("", []))[1]

    def untouched(self, version: str) -> bool:
        """Whether a version serves alone, on the servers that it was started on."""
        started = self.cluster.started[f"champion-v{version[:10]}-predictor"]
        return self.serving == (version, []) and started == 1 and bool(self.servers(version))


@pytest.fixture
def world(tmp_path: Path, publish_version: Publish, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    cluster = FakeCluster()
    made = World(tmp_path, publish_version, cluster)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    for module in ("kubernetes.config", "kubernetes.config.kube_config"):  # the client reads the variable once
        monkeypatch.setattr(f"{module}.KUBE_CONFIG_DEFAULT_LOCATION", str(made.kubeconfig))
    yield made
    cluster.stop()


def test_first_version_serves_once_its_servers_have_named_its_digest_and_answered_its_probes(world: World) -> None:
    version = world.promote("one")
    told = world.deploy(replicas=2)
    assert world.serving == (version, [])
    assert (told["version"], told["model"], told["replaced"]) == (version, world.models[version], None)
    assert told["url"] == "http://champion.example.com"
    assert [pod.asked for pod in world.servers(version)] == [2, 2], "each server is asked, for prompt and answer"
    isvc = world.cluster.service()
    assert isvc["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "tunegate", "tunegate.dev/alias": "champion"}
    model = isvc["spec"]["predictor"]["model"]
    assert model["storageUri"] == f"gs://models/registry/versions/{version}/quantized"
    assert model["args"][:4] == ["--expect", world.models[version], "--also", "champion"]
    owners = world.cluster.owners[f"{ISVCS}/champion"]
    assert {who for leaf in owners.values() for who in leaf} == {"tunegate-deploy"}


def test_new_version_grows_beside_the_old_and_takes_its_place_on_the_servers_that_were_proven(world: World) -> None:
    first = world.promote("one")
    world.deploy(replicas=2)
    second = world.promote("two")
    world.cluster.applied.clear()
    told = world.deploy(replicas=2, weights=(10, 50, 100))
    assert world.untouched(second), "promoting started no server anew"
    assert told["replaced"] == first
    steps = [
        (one["spec"]["predictor"]["name"], [(c["trafficPercent"], c["predictor"]["minReplicas"]) for c in canary])
        for one in world.cluster.applied
        if isinstance(canary := one["spec"]["canary"], list)
    ]
    old, new = f"v{first[:10]}", f"v{second[:10]}"
    assert steps == [(old, [(0, 1)]), (old, [(10, 1)]), (old, [(50, 1)]), (old, [(100, 2)]), (new, [])]
    shares = told["shares"]
    assert [(one["weight"], one["asked"], one["failed"]) for one in shares] == [(10, 4, 0), (50, 4, 0), (100, 4, 0)]
    assert all(one["serving_seconds"] for one in shares), "what serves is asked the same, to compare times"
    assert world.servers(first) == []


def test_what_serves_is_never_written_while_another_is_tried(world: World) -> None:
    world.promote("one")
    world.deploy()
    stable = world.cluster.service()["spec"]["predictor"]
    world.promote("two")
    world.cluster.applied.clear()
    world.deploy()
    *tried, promoted = world.cluster.applied
    assert [one["spec"]["predictor"] for one in tried] == [stable] * len(tried)
    assert promoted["spec"]["predictor"] == tried[-1]["spec"]["canary"][0]["predictor"]


def _at(world: World, weight: int, change: Callable[[], None]) -> None:
    """Changes something once, when a canary has this share."""

    def once(isvc: dict[str, Any]) -> None:
        if any(canary["trafficPercent"] == weight for canary in isvc["spec"]["canary"]):
            world.cluster.on_apply = lambda isvc: None
            change()

    world.cluster.on_apply = once


def _owned_by_ann(world: World) -> None:
    isvc = json.loads(json.dumps(world.cluster.service()))
    isvc["spec"]["predictor"]["minReplicas"] = 3
    world.cluster.put(f"{ISVCS}/champion", isvc, owner="ann")


def test_no_server_is_given_a_container_name_which_kserve_refuses(world: World) -> None:
    world.promote("one")
    world.deploy()
    world.promote("two")
    world.deploy()
    named = [one["spec"]["predictor"]["model"]["name"] for one in world.cluster.applied]
    named += [one["predictor"]["model"]["name"] for each in world.cluster.applied for one in each["spec"]["canary"]]
    assert set(named) == {""}
    assert not list(wrong(world.cluster.service(), inference_service()))


AT_ALL_TRAFFIC: dict[str, tuple[type[Exception], str]] = {
    "alias moved": (ConflictError, "points at another version by now"),
    "alias gone": (ConflictError, "no such alias any more"),
    "signal": (Interrupted, "asked to stop"),
    "field of another's": (ConflictError, "Somebody else has set"),
    "api away": (RunError, "API fails"),
}


@pytest.mark.parametrize("what", AT_ALL_TRAFFIC)
def test_canary_with_all_the_traffic_is_never_left_there_with_nobody_driving(
    world: World, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, said = AT_ALL_TRAFFIC[what]
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    stopping = threading.Event()

    def away() -> None:
        world.cluster.faults = [Fault(r"PATCH .*inferenceservices", 503, times=4)]

    def gone() -> None:
        monkeypatch.setattr("tunegate.deploy.kserve.release.current", lambda storage, alias: None)

    changes: dict[str, Callable[[], Any]] = {
        "alias moved": lambda: rollback(world.storage, read_alias(world.storage, "champion")),
        "alias gone": gone, "signal": stopping.set, "field of another's": lambda: _owned_by_ann(world),
        "api away": away,
    }  # fmt: skip
    if what == "api away":
        patient = dataclasses.replace(connect(NAMESPACE), patience_seconds=1.0)
        monkeypatch.setattr(world, "connected", lambda: patient)
    _at(world, 100, changes[what])
    with pytest.raises(kind, match=said):
        world.deploy(stopping=stopping)
    assert world.serving == (first, [(second, 0)] if what == "signal" else [])


def test_promotion_whose_answer_was_lost_is_not_rolled_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.promote("one")
    world.deploy()
    second = world.promote("two")
    patient = dataclasses.replace(connect(NAMESPACE), patience_seconds=0.3)
    monkeypatch.setattr(world, "connected", lambda: patient)

    def lost() -> None:
        world.cluster.faults = [Fault(r"PATCH .*inferenceservices", 503, times=20, after=True)]

    _at(world, 100, lost)
    with pytest.raises(RunError):
        world.deploy()
    world.cluster.faults = []
    assert world.untouched(second)
    world.deploy()
    assert world.untouched(second)


def test_promotion_that_would_be_refused_is_known_before_the_canary_is_there(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    _owned_by_ann(world)
    world.promote("two")
    world.cluster.applied.clear()
    with pytest.raises(ConflictError) as refused:
        world.deploy()
    assert any("minReplicas" in item and "ann" in item for item in refused.value.items)
    assert world.cluster.applied == []
    assert world.serving == (first, [])


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (2, 3)])
def test_number_of_servers_is_changed_with_a_version_and_without_one(world: World, counts: tuple[int, int]) -> None:
    before, after = counts
    world.promote("one")
    world.deploy(replicas=before)
    second = world.promote("two")
    world.deploy(replicas=after)
    assert (len(world.servers(second)), world.untouched(second)) == (after, True)
    world.deploy(replicas=before)
    assert (len(world.servers(second)), world.untouched(second)) == (before, True)


def test_version_that_serves_in_another_form_is_not_said_to_serve_in_this_one(world: World) -> None:
    version = world.promote("one")
    world.deploy()
    with pytest.raises(ConflictError, match="served in another form"):
        world.deploy(storage_prefix="gs://elsewhere/registry")
    assert world.untouched(version)


def test_template_that_lost_a_field_is_refused_before_the_canary_is_there(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/tunegate-serving"
    data = world.cluster.objects[path]["data"]
    data["inferenceservice.yaml"] = data["inferenceservice.yaml"].replace(
        "    terminationGracePeriodSeconds: 120\n", ""
    )
    world.promote("two")
    world.cluster.applied.clear()
    with pytest.raises(InputError, match="lacks fields of what serves") as refused:
        world.deploy()
    assert refused.value.items == ("terminationGracePeriodSeconds",)
    assert world.cluster.applied == []
    assert world.untouched(first)


def test_first_version_that_is_interrupted_before_it_is_proven_does_not_serve_on(world: World) -> None:
    version = world.promote("one", Behaviour(ready=False))
    stopping = threading.Event()
    world.cluster.on_apply = lambda isvc: stopping.set()
    with pytest.raises(Interrupted):
        world.deploy(stopping=stopping)
    assert world.servers(version) == []
    world.cluster.on_apply = lambda isvc: None
    world.behaviour(version).ready = True
    world.deploy()
    assert world.servers(version)


def test_version_that_starts_anew_after_a_stop_is_not_taken_for_the_proven_one(world: World) -> None:
    world.promote("one")
    world.deploy()
    world.cluster.put(
        f"{ISVCS}/champion",
        world.cluster.service()
        | {"metadata": {**world.cluster.service()["metadata"], "annotations": {
            **world.cluster.service()["metadata"]["annotations"], "serving.kserve.io/stop": "true"}}},
        owner="tunegate-deploy",
    )  # fmt: skip
    bad = world.promote("bad", Behaviour(token=7))
    assert _killed_at(world, (bad, [])) == -signal.SIGKILL
    with pytest.raises(GateRefused):
        world.deploy()
    assert world.servers(bad) == []


def test_service_that_somebody_else_stopped_is_told_at_once(world: World) -> None:
    world.promote("one")
    world.deploy()
    isvc = json.loads(json.dumps(world.cluster.service()))
    isvc["metadata"]["annotations"]["serving.kserve.io/stop"] = "true"
    world.cluster.put(f"{ISVCS}/champion", isvc, owner="ann")
    world.promote("two")
    world.cluster.applied.clear()
    with pytest.raises(InputError, match="stopped by somebody else"):
        world.deploy()
    assert world.cluster.applied == []


def test_refusal_is_told_and_kept_though_the_rollback_fails_and_the_retry_takes_the_canary_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.promote("one")
    world.deploy(attempt="run-1")
    second = world.promote("two", Behaviour(user_failures=3))
    patient = dataclasses.replace(connect(NAMESPACE), patience_seconds=0.3)
    monkeypatch.setattr(world, "connected", lambda: patient)

    def away() -> None:
        world.cluster.faults = [Fault(r"PATCH .*inferenceservices", 503, times=-1)]

    _at(world, 50, away)
    with pytest.raises(GateRefused, match="does not keep its limits"):
        world.deploy(attempt="run-2")
    assert world.serving == (first, [(second, 50)])
    world.cluster.faults = []
    with pytest.raises(GateRefused, match="was refused before"):
        world.deploy(attempt="run-2")
    assert world.untouched(first)


def test_rollback_leaves_what_is_not_its_own(world: World) -> None:
    world.promote("one")
    world.deploy()
    second = world.promote("two", Behaviour(user_failures=3))
    other: dict[str, Any] = {}

    def add() -> None:
        isvc = json.loads(json.dumps(world.cluster.service()))
        other.update(json.loads(json.dumps(isvc["spec"]["canary"][0])))
        other["predictor"]["name"] = "v-other"
        isvc["spec"]["canary"].append(other)
        world.cluster.put(f"{ISVCS}/champion", isvc, owner="tunegate-deploy")

    _at(world, 50, add)
    with pytest.raises(GateRefused):
        world.deploy()
    assert [one["predictor"]["name"] for one in world.cluster.service()["spec"]["canary"]] == ["v-other"]
    assert world.servers(second) == []


def test_driver_that_was_paused_asks_whether_it_still_drives_before_it_writes(world: World) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/champion-tunegate"
    with Lease(world.connected(), "champion", seconds=30.0) as lease:
        lease.refuse_lost()
        asked = len(world.cluster.seen)
        lease._renewed -= 25.0  # as after a pause: renewed long ago, by the clock
        lease.refuse_lost()
        assert len(world.cluster.seen) > asked
        lease._renewed -= 25.0
        world.cluster.faults = [Fault("leases", 403, times=1)]
        with pytest.raises(RunError, match="could not be renewed"):
            lease.refuse_lost()
        taken = json.loads(json.dumps(world.cluster.objects[path]))
        taken["spec"]["holderIdentity"] = "another"
        world.cluster.put(path, taken)
        with pytest.raises(ConflictError, match="has taken over"):
            lease.refuse_lost()


def test_page_of_an_unchecked_version_does_not_say_that_it_passed(world: World) -> None:
    world.promote("one")
    world.deploy()
    checked = (world.place / "deployment-1" / "page.html").read_text()
    world.deploy(check="none")
    unchecked = (world.place / "deployment-2" / "page.html").read_text()
    assert ("PASS" in checked, "UNCHECKED" in checked, "1 probes" in checked) == (True, False, True)
    assert ("PASS" in unchecked, "UNCHECKED" in unchecked, "it serves unchecked" in unchecked) == (False, True, True)


def test_answer_that_another_model_gives_to_the_alias_counts_as_a_failure() -> None:
    pods = [Pod("m" * 64, Behaviour()), Pod("m" * 64, Behaviour(serves="e" * 64))]
    watch = Watch(50, "m" * 64, "champion", None, 5.0)
    try:
        for pod in pods:
            watch.ask(f"http://127.0.0.1:{pod.port}", "", "")
    finally:
        for pod in pods:
            pod.stop()
    assert (watch.figures.asked, watch.figures.failed) == (2, 1)


def test_no_traffic_moves_before_the_probes_are_answered(world: World) -> None:
    world.promote("one")
    world.deploy()
    second = world.promote("two")
    asked: dict[int, int] = {}

    def note(isvc: dict[str, Any]) -> None:
        for canary in isvc["spec"]["canary"]:
            asked.setdefault(canary["trafficPercent"], sum(pod.asked for pod in world.servers(second)))

    world.cluster.on_apply = note
    world.deploy()
    assert asked[0] == 0
    assert asked[50] == 2


def test_deploying_again_changes_nothing_and_proves_it_again(world: World) -> None:
    version = world.promote("one")
    world.deploy()
    before, asked = world.cluster.service(), world.servers(version)[0].asked
    told = world.deploy()
    assert world.cluster.service() == before
    assert (told["version"], told["shares"]) == (version, [])
    assert world.servers(version)[0].asked > asked


def test_rollback_of_the_alias_brings_the_old_version_back_the_same_way(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    world.deploy()
    rollback(world.storage, read_alias(world.storage, "champion"))
    told = world.deploy()
    assert world.serving == (first, [])
    assert told["replaced"] == second


BAD: dict[str, tuple[Behaviour, dict[str, Any], str]] = {
    "other bytes": (Behaviour(serves="e" * 64), {}, "serves other bytes"),
    "other answers": (Behaviour(token=7), {}, "does not answer on the cluster as what was evaluated"),
    "errors": (Behaviour(fails_every=4), {}, "error rate 25.00%"),
    "errors of users": (Behaviour(user_failures=3), {}, "that its servers counted"),
    "a name that users do not ask for": (Behaviour(nameless=True), {}, "does not know the name that users ask for"),
    "slow": (Behaviour(seconds=0.3), {"max_latency_seconds": 0.2}, "at most 0.200 s (absolute)"),
    "slower than what serves": (Behaviour(seconds=0.4), {"max_latency_ratio": 3.0}, "3 times what serves"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_what_may_not_serve_is_rolled_back_by_itself_and_the_version_before_serves_on(world: World, wrong: str) -> None:
    behaviour, limits, said = BAD[wrong]
    first = world.promote("one", Behaviour(seconds=0.05))
    world.deploy()
    second = world.promote("two", behaviour)
    with pytest.raises(GateRefused) as refused:
        world.deploy(**limits)
    assert said in str(refused.value)
    assert world.untouched(first)
    assert world.servers(second) == []
    assert not list(world.place.glob("deployment-2*")), "what was refused leaves no artifact"


def test_server_that_turns_bad_while_it_has_traffic_is_rolled_back(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")

    def turn(isvc: dict[str, Any]) -> None:
        if any(canary["trafficPercent"] == 50 for canary in isvc["spec"]["canary"]):
            world.behaviour(second).serves = "e" * 64

    world.cluster.on_apply = turn
    with pytest.raises(GateRefused, match="serves other bytes"):
        world.deploy()
    assert world.untouched(first)


@pytest.mark.parametrize("weights", [(100,), (5, 100)])
def test_broken_limit_ends_a_share_before_its_time(world: World, weights: tuple[int, ...]) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two", Behaviour(user_failures=1))
    begin = time.monotonic()
    with pytest.raises(GateRefused):
        world.deploy(weights=weights, stage_seconds=600.0)
    assert time.monotonic() - begin < 30
    assert world.untouched(first)


def test_canary_that_is_not_ready_in_time_is_taken_away_and_kserve_is_quoted(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two", Behaviour(ready=False))
    with pytest.raises(RunError) as late:
        world.deploy(ready_seconds=0.3)
    assert "was not ready in time" in late.value.failed
    assert any("ModelLoadFailed" in item and "exit code 2" in item for item in late.value.items)
    assert world.untouched(first)
    assert world.servers(second) == []


def test_kserve_that_splits_no_traffic_is_not_taken_for_a_canary(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two")
    world.cluster.splits = False
    with pytest.raises(RunError, match="not ready in time"):
        world.deploy(ready_seconds=0.3)
    assert world.untouched(first)


def test_server_that_is_listed_and_silent_is_no_proof(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two", Behaviour(silent=True))
    with pytest.raises(RunError):
        world.deploy()
    assert world.untouched(first)


@pytest.mark.parametrize("behaviour", [Behaviour(token=7), Behaviour(serves="e" * 64), Behaviour(ready=False)])
def test_first_version_that_fails_is_stopped_and_the_next_one_starts_in_its_place(
    world: World, behaviour: Behaviour
) -> None:
    bad = world.promote("bad", behaviour)
    with pytest.raises((GateRefused, RunError)):
        world.deploy(ready_seconds=0.3)
    assert world.cluster.service()["metadata"]["annotations"]["serving.kserve.io/stop"] == "true"
    assert world.servers(bad) == []
    good = world.promote("good")
    world.deploy()
    assert world.untouched(good)
    assert "serving.kserve.io/stop" not in world.cluster.service()["metadata"]["annotations"]


def test_broken_version_that_serves_is_replaced_all_the_same(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.behaviour(first).silent = True
    second = world.promote("two")
    told = world.deploy()
    assert world.untouched(second)
    assert [one["serving_seconds"] for one in told["shares"]] == [None, None]


def test_alias_that_moves_meanwhile_ends_the_rollout_and_the_old_version_serves_on(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two")

    def roll_back(isvc: dict[str, Any]) -> None:
        if any(canary["trafficPercent"] == 50 for canary in isvc["spec"]["canary"]):
            world.cluster.on_apply = lambda isvc: None
            rollback(world.storage, read_alias(world.storage, "champion"))

    world.cluster.on_apply = roll_back
    with pytest.raises(ConflictError, match="points at another version by now"):
        world.deploy()
    assert world.untouched(first)


def test_status_written_between_read_and_write_is_met_by_deciding_anew(world: World) -> None:
    world.promote("one")
    world.deploy()
    second = world.promote("two")
    met = Fault(r"PATCH .*inferenceservices", 409, times=3, message="the object has been modified")
    world.cluster.faults = [met]
    world.deploy()
    assert (world.serving, met.times) == ((second, []), 0)


def test_field_that_somebody_else_set_is_not_taken_and_its_owner_is_named(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    isvc = json.loads(json.dumps(world.cluster.service()))
    isvc["spec"]["canary"] = [
        {"trafficPercent": 5, "predictor": {**isvc["spec"]["predictor"], "name": "mine", "minReplicas": 1}}
    ]
    world.cluster.put(f"{ISVCS}/champion", isvc, owner="ann")
    world.promote("two")
    with pytest.raises(ConflictError) as refused:
        world.deploy()
    assert any("canary" in item and "ann" in item for item in refused.value.items)
    spec = world.cluster.service()["spec"]
    assert [canary["predictor"]["name"] for canary in spec["canary"]] == ["mine"]
    assert spec["predictor"]["name"] == f"v{first[:10]}"


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/managed-by": "tunegate", "tunegate.dev/alias": "other"}])
def test_service_that_is_not_the_aliass_is_left_alone(world: World, labels: dict[str, str]) -> None:
    world.promote("one")
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "champion", "namespace": NAMESPACE, "labels": labels},
        "spec": {"predictor": {"name": "x", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://x",
                                                      "args": ["--expect", "x"]}}},
    }  # fmt: skip
    world.cluster.put(f"{ISVCS}/champion", theirs)
    with pytest.raises(InputError, match="is not this alias's"):
        world.deploy()
    assert world.cluster.service()["spec"] == theirs["spec"]
    assert world.cluster.applied == []


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_api_that_fails_for_a_while_is_asked_again(world: World, after: bool) -> None:
    world.promote("one")
    world.deploy()
    second = world.promote("two")
    faults = [Fault(f"{method} ", code, times=1, after=after) for method, code in (("PATCH", 500), ("PUT", 503))]
    world.cluster.faults = [*faults, Fault("GET .*endpointslices", 429, times=1)]
    world.deploy(lease_seconds=30.0)
    assert world.untouched(second)
    assert [fault.times for fault in world.cluster.faults] == [0, 0, 0]


def test_api_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    monkeypatch.setattr(world, "connected", lambda: dataclasses.replace(connect(NAMESPACE), patience_seconds=0.3))
    world.cluster.faults = [Fault(r"PATCH .*inferenceservices", 503, times=-1)]
    with pytest.raises(RunError, match="API fails"):
        world.deploy()
    assert world.serving[0] == first
    world.cluster.faults = []
    world.deploy()
    assert world.untouched(second)


def test_missing_right_is_told_at_once_with_what_to_bind(world: World) -> None:
    world.promote("one")
    world.cluster.faults = [Fault("PATCH", 403, times=-1, message="cannot patch resource inferenceservices")]
    with pytest.raises(InputError) as refused:
        world.deploy()
    assert "cannot patch resource" in refused.value.seen
    assert "tunegate-deployer" in refused.value.remedy
    assert TOKEN not in str(refused.value)
    assert sum(asked.startswith("PATCH") for asked in world.cluster.seen) == 1


def test_cluster_without_kserve_is_told(world: World) -> None:
    world.promote("one")
    world.cluster.faults = [Fault("NOTHING", 0, times=0)]
    answer = world.cluster.answer

    def absent(method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        return (404, "404 page not found") if "kserve" in path else answer(method, path, query, body)

    world.cluster.answer = absent  # type: ignore[method-assign]
    with pytest.raises(InputError, match="does not know"):
        world.deploy()


def test_what_kserve_refuses_is_told_in_its_words_and_nothing_serves_otherwise(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two")
    world.cluster.faults = [
        Fault(r"PATCH .*inferenceservices", 400, message="admission webhook denied the request: no")
    ]
    with pytest.raises(InputError) as refused:
        world.deploy()
    assert "denied the request: no" in refused.value.seen
    assert world.untouched(first)


@pytest.mark.parametrize(
    ("config", "said"),
    [("", "There is no cluster"), ("contexts: []", "There is no cluster"), (None, "which namespace")],
)
def test_cluster_or_namespace_that_nobody_named_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch, config: str | None, said: str
) -> None:
    written = json.loads(world.kubeconfig.read_text())
    del written["contexts"][0]["context"]["namespace"]
    world.kubeconfig.write_text(json.dumps(written) if config is None else config)
    with pytest.raises(InputError, match=said):
        connect()


TEMPLATES = {
    "absent": None,
    "no yaml": "{",
    "another kind": "apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {}",
    "serverless": "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {}\nspec: {}",
    "a model of its own": "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
    "metadata: {annotations: {serving.kserve.io/deploymentMode: Standard}}\n"
    "spec: {predictor: {model: {storageUri: 'gs://x'}}}",
}


@pytest.mark.parametrize("wrong", TEMPLATES)
def test_template_that_cannot_be_served_from_is_refused_before_anything_is_written(world: World, wrong: str) -> None:
    world.promote("one")
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/tunegate-serving"
    if TEMPLATES[wrong] is None:
        del world.cluster.objects[path]
    else:
        world.cluster.objects[path]["data"]["inferenceservice.yaml"] = TEMPLATES[wrong]
    with pytest.raises(InputError, match="has no template"):
        world.deploy()
    assert all(asked.startswith("GET") for asked in world.cluster.seen)


def test_template_that_changed_since_never_reaches_what_serves(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/tunegate-serving"
    data = world.cluster.objects[path]["data"]
    data["inferenceservice.yaml"] = data["inferenceservice.yaml"].replace("Seconds: 120", "Seconds: 60")
    world.deploy()
    assert world.untouched(first)
    second = world.promote("two")
    world.deploy()
    assert world.untouched(second)
    assert world.cluster.service()["spec"]["predictor"]["terminationGracePeriodSeconds"] == 60


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "no alias": ({}, {}, InputError, "There is no alias"),
    "not passed": ({"decision": "FAIL"}, {}, GateRefused, "The gate said FAIL"),
    "shares that shrink": ({}, {"weights": (50, 10, 100)}, SettingsError, "do not lead to all"),
    "shares that do not end": ({}, {"weights": (5, 50)}, SettingsError, "do not lead to all"),
    "a registry that no cluster reads": ({}, {"storage_prefix": ""}, SettingsError, "cannot fetch models"),
    "a name that is too long": ({}, {"service": "a" * 50}, SettingsError, "cannot have this name"),
    "a name with an accent": ({}, {"service": "caf\u00e9"}, SettingsError, "cannot have this name"),
    "a name that ends in a dash": ({}, {"service": "a-"}, SettingsError, "cannot have this name"),
    "a template elsewhere": ({}, {"template": "../secrets/x"}, SettingsError, "no name of an object"),
    "a namespace elsewhere": ({}, {"namespace": "a/b"}, SettingsError, "no name of an object"),
    "a name with a dot": ({}, {"service": "a.b"}, SettingsError, "cannot have this name"),
    "another build": ({}, {"cpu": True}, SettingsError, "other flags than it was checked with"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_deployed_is_refused_before_the_cluster_is_written(world: World, why: str) -> None:
    told, changed, kind, said = REFUSED[why]
    if why != "no alias":
        world.promote("one", **told)
    with pytest.raises(kind, match=said):
        world.deploy(**changed)
    assert not [asked for asked in world.cluster.seen if not asked.startswith("GET")]


def test_changed_report_of_a_version_is_never_deployed_by(world: World) -> None:
    version = world.promote("one")
    path = world.place / "registry" / "versions" / version / "serving" / "probes.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"max_tokens": 1', '"max_tokens": 2'))
    with pytest.raises(ArtifactError, match=r"probes\.json"):
        world.deploy()
    assert world.cluster.seen == []


def test_unchecked_version_serves_only_when_that_is_asked_for(world: World) -> None:
    version = world.promote("one", answer=ProbeToken(7, -1.0, 5.0))
    with pytest.raises(GateRefused):
        world.deploy()
    told = world.deploy(check="none")
    assert (world.serving, told["probes"]) == ((version, []), 0)


def test_refused_attempt_is_not_tried_on_users_again_but_a_new_run_may(world: World) -> None:
    first = world.promote("one")
    world.deploy(attempt="run-1")
    second = world.promote("two", Behaviour(token=7))
    with pytest.raises(GateRefused):
        world.deploy(attempt="run-2")
    world.cluster.applied.clear()
    with pytest.raises(GateRefused, match="was refused before"):
        world.deploy(attempt="run-2")
    assert world.cluster.applied == []
    assert world.untouched(first)
    world.behaviour(second).token = 1
    world.deploy(attempt="run-3")
    assert world.serving == (second, [])


def test_two_deployments_never_drive_one_service(world: World) -> None:
    world.promote("one")
    with (
        Lease(world.connected(), "champion", seconds=1.0),
        pytest.raises(ConflictError, match="Another deployment is at work"),
    ):
        world.deploy()
    assert world.cluster.applied == []


def test_driver_that_lost_its_lease_writes_nothing_more(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    world.promote("two")
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/champion-tunegate"

    def take(isvc: dict[str, Any]) -> None:
        lease = json.loads(json.dumps(world.cluster.objects[path]))
        lease["spec"]["holderIdentity"] = "another"
        world.cluster.put(path, lease)

    world.cluster.on_apply = take
    world.cluster.applied.clear()
    with pytest.raises(ConflictError, match="has taken over"):
        world.deploy(stage_seconds=600.0)
    assert len(world.cluster.applied) <= 2
    assert world.serving[0] == first
    assert world.cluster.objects[path]["spec"]["holderIdentity"] == "another"


def test_signal_takes_the_traffic_from_the_canary_and_the_next_run_goes_on_to_the_end(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    stopping = threading.Event()

    def stop(isvc: dict[str, Any]) -> None:
        if any(canary["trafficPercent"] == 50 for canary in isvc["spec"]["canary"]):
            stopping.set()

    world.cluster.on_apply = stop
    with pytest.raises(Interrupted):
        world.deploy(stopping=stopping)
    assert world.serving == (first, [(second, 0)])
    world.cluster.on_apply = lambda isvc: None
    world.deploy()
    assert world.untouched(second)


#: Where the step is killed: what was just applied, as (what serves, share of the canary).
STAGES: dict[str, Callable[[str, str], tuple[str, list[tuple[str, int]]]]] = {
    "started, at no traffic": lambda first, second: (first, [(second, 0)]),
    "at half": lambda first, second: (first, [(second, 50)]),
    "at all traffic": lambda first, second: (first, [(second, 100)]),
    "in its place": lambda first, second: (second, []),
}


@pytest.mark.parametrize("stage", STAGES)
def test_step_that_is_killed_is_taken_up_where_it_was(world: World, stage: str) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    killed = _killed_at(world, STAGES[stage](first, second))
    assert killed == -signal.SIGKILL
    assert world.servers(STAGES[stage](first, second)[0]), "what serves, serves on while nobody drives"
    world.cluster.applied.clear()
    world.deploy()
    assert world.untouched(second)
    shares = [canary["trafficPercent"] for one in world.cluster.applied for canary in one["spec"]["canary"]]
    begun = {"started, at no traffic": 50, "at half": 100, "at all traffic": None, "in its place": None}[stage]
    assert next(iter(shares), None) == begun, "it goes on behind the share that was reached"


def test_first_deployment_that_is_killed_is_taken_up_and_stopped_when_it_answers_wrongly(world: World) -> None:
    version = world.promote("one", Behaviour(token=7))
    assert _killed_at(world, (version, [])) == -signal.SIGKILL
    with pytest.raises(GateRefused):
        world.deploy()
    assert world.servers(version) == []


def test_canary_of_a_killed_rollout_makes_room_for_the_next_version(world: World) -> None:
    first = world.promote("one")
    world.deploy()
    second = world.promote("two")
    assert _killed_at(world, (first, [(second, 50)])) == -signal.SIGKILL
    third = world.promote("three")
    world.deploy()
    assert world.untouched(third)
    assert world.servers(second) == []


def test_command_says_what_it_deployed_and_exits_3_when_it_was_rolled_back(world: World) -> None:
    first = world.promote("one")
    kept = world.place / "kept"
    command, environment = _command(world, "--json", "--set", "deploy.replicas=2", "--output", str(kept))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["namespace"], len(world.servers(first))) == (first, NAMESPACE, 2)
    assert told == json.loads((kept / "deployment.json").read_text())
    world.promote("two", Behaviour(token=7))
    refused = subprocess.run(
        _command(world)[0], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (refused.returncode, "does not answer on the cluster" in refused.stderr) == (3, True)
    assert TOKEN not in refused.stdout + refused.stderr
    assert world.serving == (first, [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "kserve", "--port", "8001"], "--port"),
        (["--output", "x"], "--output"),
        (["--json"], "--json"),
        (["--target", "mars"], "no such target"),
        (["--set", "deploy.replicas=2"], "unknown key"),
        (["--target", "kserve", "--set", "train.r=4"], "does not use"),
        (["--target", "kserve", "--set", "deploy.replica=2"], "did you mean 'replicas'?"),
    ],
)
def test_option_that_a_target_does_not_know_is_refused_and_not_ignored(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["deploy", "registry", "champion", *options])
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_component_publishes_what_is_served(world: World) -> None:
    version = world.promote("one")

    class Shown:
        def __init__(self, path: Path) -> None:
            self.path, self.metadata, self.logged = str(path), {}, {}

        def log_metric(self, metric: str, value: float) -> None:
            self.logged[metric] = value

    deployment, page, metrics = (Shown(world.place / name) for name in ("out/deployment", "out/page", "out/metrics"))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        launch(
            {**QUICK, "weights": [50.0, 100.0], "replicas": 1.0}, {}, {}, registry=str(world.place / "registry"),
            alias="champion", attempt="run-1", deployment=deployment, page=page, metrics=metrics,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert deployment.metadata["kind"] == "deployment"
    assert world.models[version] in Path(page.path).read_text()
    assert metrics.logged == {"shares": 0, "error_rate": 0.0}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "canary"), [{"trafficPercent": 101, "predictor": {}}]),
        (("spec", "canary"), [{"trafficPercent": 5}]),
        (("spec", "canary"), [{"trafficPercent": 5, "predictor": {"model": {"modelFormat": {"name": "x"}}}}]),
        (("spec", "canary"), [{"trafficPercent": 5, "name": "v2", "predictor": {}}]),
        (("spec", "predictor", "canaryTraffic"), 5),
        (("spec", "predictor", "minReplicas"), "2"),
        (("spec", "predictor", "model", "args"), "--expect"),
    ],
)
def test_stand_in_refuses_what_kserves_schema_does_not_know(world: World, path: tuple[str, ...], value: Any) -> None:
    world.promote("one")
    world.deploy()
    isvc = json.loads(json.dumps(world.cluster.service()))
    assert not list(wrong(isvc, inference_service()))
    place = isvc
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert list(wrong(isvc, inference_service()))


def _command(world: World, *options: str) -> tuple[list[str], dict[str, str]]:
    recipe = world.place / "recipe.yaml"
    recipe.write_text(json.dumps({"deploy": QUICK | {"weights": list(QUICK["weights"])}}))
    command = [sys.executable, "-m", "tunegate", "deploy", str(world.place / "registry"), "champion"]
    command += ["--target", "kserve", "--recipe", str(recipe), *options]
    return command, {**os.environ, "KUBECONFIG": str(world.kubeconfig)}


def _killed_at(world: World, state: tuple[str, list[tuple[str, int]]]) -> int:
    """Runs the command as a process that is killed as soon as the service is in ``state``; its exit code."""
    command, environment = _command(world)

    def kill(isvc: dict[str, Any]) -> None:
        if world.serving == state:
            running.send_signal(signal.SIGKILL)

    world.cluster.on_apply = kill
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        said, _ = running.communicate(timeout=PATIENCE_SECONDS)
    world.cluster.on_apply = lambda isvc: None
    assert running.returncode == -signal.SIGKILL, said.decode()
    return running.returncode


def test_every_request_that_a_server_counted_is_read_whatever_its_path() -> None:
    pod = Pod("m" * 64, Behaviour(user_failures=3))
    try:
        assert counted(f"http://127.0.0.1:{pod.port}", seconds=5.0) == Counted(answered=4.0, failed=3.0)
    finally:
        pod.stop()


def test_servers_that_start_anew_count_from_nothing() -> None:
    behaviour = Behaviour(user_failures=2)
    pods = [Pod("m" * 64, behaviour)]
    url = f"http://127.0.0.1:{pods[0].port}"
    watch = Watch(50, "m" * 64, "champion", None, 5.0)
    try:
        watch.count([url])
        watch.count([url])
        pods[0].counted.update({"2xx": 0, "5xx": 0})
        watch.count([url])
    finally:
        pods[0].stop()
    assert (watch.figures.user_requests, watch.figures.user_failures) == (5, 4)


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([1.0], 1.0), (list(range(1, 21)), 19), (list(range(1, 101)), 95)]
)
def test_percentile_is_that_of_the_nearest_rank(values: list[float], expected: float | None) -> None:
    assert percentile(values) == expected


def test_pipeline_deploys_what_the_alias_points_at(world: World) -> None:
    version = world.promote("one")
    program = (
        "import json, sys\n"
        "from kfp import local\n"
        "from tunegate_pipelines.deploy import deploy\n"
        "local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)\n"
        "deploy(registry=sys.argv[2], alias='champion', settings=json.loads(sys.argv[3]))\n"
    )
    settings = json.dumps(QUICK | {"weights": list(QUICK["weights"])})
    command = [sys.executable, "-W", "ignore", "-c", program, str(world.place / "kfp"), str(world.place / "registry")]
    environment = {**os.environ, "KUBECONFIG": str(world.kubeconfig)}
    done = subprocess.run(
        [*command, settings], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert world.serving == (version, [])
    (written,) = (world.place / "kfp").rglob("deployment.json")
    assert json.loads(written.read_text())["version"] == version
