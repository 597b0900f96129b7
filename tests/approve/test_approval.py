"""Approval from request to promotion: by somebody who may, in time, once, and of nothing that changed since."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.approve import decide as answering
from tunegate.approve import wait as waiting
from tunegate.approve.decide import decide, parse_choice
from tunegate.contracts.approval import UNAUTHENTICATED, Decision, Identity, Request, utc_now
from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import (
    ApprovalRefused,
    ArtifactError,
    ConflictError,
    GateRefused,
    InputError,
    OutputExistsError,
    SettingsError,
)
from tunegate.contracts.files import canonical_json
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.contracts.verdict import Check, read_verdict
from tunegate.promote import approved as approved_step
from tunegate.promote.approved import run as promote_approved
from tunegate.registry.aliases import history, read_alias, rollback
from tunegate.registry.approvals import (
    find_request,
    list_requests,
    read_decision,
    read_request,
    write_decision,
    write_request,
)
from tunegate.registry.claims import begin, end
from tunegate.registry.settings import SigningSettings
from tunegate.registry.versions import Part, list_versions, publish, show_version

ANN, BOB = Identity("local:ann", "local"), Identity("local:bob", "local")


def answer(finished: Any, digest: str, choice: Any = "approve", who: Identity = BOB) -> Decision:
    return decide(finished.storage, read_request(finished.storage, digest), choice, who, "looks right", {})


def use(
    finished: Any,
    digest: str,
    output: str = "promotion",
    signing: SigningSettings = SigningSettings(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    promote_approved(signing, registry=finished.registry, request=digest, output=finished.folder / output)
    document: dict[str, Any] = json.loads((finished.folder / output / "promotion.json").read_text())
    return document


def versions(finished: Any, digest: str) -> Path:
    """The files of the version that a request names, as they lie in the registry."""
    return Path(finished.registry) / "versions" / read_request(finished.storage, digest).version


def moved_elsewhere(finished: Any, other: Any) -> str:
    """The alias at another version, approved and promoted by its own request."""
    digest = other.ask()
    answer(other, digest)
    return str(use(other, digest)["version"])


def test_asking_publishes_the_version_and_leaves_the_alias(finished: Any) -> None:
    digest = finished.ask()
    request = read_request(finished.storage, digest)
    assert list_versions(finished.storage) == [request.version]
    assert read_alias(finished.storage, "champion").record is None
    verdict = verify(finished.inputs["verdict"])
    assert request.parts["verdict"] == verdict.content_digest
    models = {"adapter", "merged", "quantized", "parity", "lineage", "verdict"}
    assert set(request.parts) == models | {f"evaluations/{role}" for role in ("base", "merged", "quantized")}
    assert (request.policy_digest, request.generation, request.requester) == ("p" * 64, 0, ANN)


def test_the_page_says_what_is_asked_who_may_answer_and_how(finished: Any) -> None:
    digest = finished.ask(approvers=("local:bob",))
    page = (finished.folder / "asked/page.html").read_text()
    request = read_request(finished.storage, digest)
    commands = (f"tunegate approve {digest}", f"tunegate reject {digest}", "run the pipeline &#x27;approve&#x27;")
    facts = (request.version, request.expires, "local:ann", "local:bob", "unsigned", finished.registry)
    for said in (*commands, *facts, "All 1 checks hold.", "tool_call exact"):
        assert said in page, said


def test_an_approved_version_is_promoted_from_the_registry_alone(finished: Any) -> None:
    digest = finished.ask()
    answer(finished, digest)
    for folder in (*finished.inputs["evaluations"].values(), finished.inputs["verdict"], finished.inputs["merged"]):
        shutil.rmtree(folder)  # the run's own files may be gone by then
    document = use(finished, digest[:12])
    (record,) = history(finished.storage, "champion")
    request = read_request(finished.storage, digest)
    assert (record.version, record.approval, record.attempt) == (request.version, digest, digest)
    assert (record.verdict, record.note) == (request.parts["verdict"], "looks right")
    assert (document["approval"], document["version"]) == (digest, request.version)
    page = (finished.folder / "promotion/page.html").read_text()
    assert "local:bob" in page
    assert "looks right" in page


def test_asking_again_asks_once(finished: Any) -> None:
    first = finished.ask()
    assert finished.ask("again") == first
    assert list_requests(finished.storage) == [first]
    answer(finished, first, "reject")
    assert finished.ask("after the answer") != first


def test_a_verdict_that_is_no_pass_is_asked_about_by_nobody(finish: Callable[..., Any]) -> None:
    refused = finish(decision="INCONCLUSIVE")
    with pytest.raises(GateRefused, match="INCONCLUSIVE"):
        refused.ask()
    assert list_versions(refused.storage) == []


def test_without_an_answer_nothing_is_promoted(finished: Any) -> None:
    digest = finished.ask()
    with pytest.raises(ApprovalRefused, match="tunegate approve") as caught:
        use(finished, digest)
    assert caught.value.exit_code == 3
    assert not (finished.folder / "promotion").exists()


def test_a_rejected_request_is_never_promoted_and_the_answer_stands(finished: Any) -> None:
    digest = finished.ask()
    answer(finished, digest, "reject")
    with pytest.raises(ApprovalRefused, match="was rejected") as caught:
        use(finished, digest)
    assert "local:bob" in caught.value.seen
    with pytest.raises(ConflictError, match="decided already"):
        answer(finished, digest, "approve")
    assert read_alias(finished.storage, "champion").record is None


def test_whoever_asked_may_not_approve_and_may_take_it_back(finished: Any) -> None:
    digest = finished.ask()
    with pytest.raises(ApprovalRefused, match="who asked for it"):
        answer(finished, digest, who=ANN)
    assert read_decision(finished.storage, digest) is None
    assert answer(finished, digest, "reject", ANN).decision == "reject"


def test_whoever_asked_is_known_under_another_address_of_the_same_subject(finished: Any) -> None:
    issuer = "https://issuer.example.com"
    subject = {"iss": issuer, "sub": "42"}
    proof = {"identity": "oidc", "issuer": issuer, "audience": "tunegate", "approvers": ("ann@example.com",)}
    digest = finished.ask(requester=Identity("sub:42", "oidc", subject), **proof)
    with pytest.raises(ApprovalRefused, match="who asked for it as sub:42"):
        answer(finished, digest, who=Identity("ann@example.com", "oidc", subject))
    elsewhere = Identity("ann@example.com", "oidc", {**subject, "iss": "https://another.example.com"})
    assert answer(finished, digest, who=elsewhere).decision == "approve"


def test_whoever_asked_may_approve_where_the_request_says_so(finished: Any) -> None:
    digest = finished.ask(allow_requester=True)
    answer(finished, digest, who=ANN)
    assert use(finished, digest)["approval"] == digest


@pytest.mark.parametrize("who", [Identity("local:eve", "local"), UNAUTHENTICATED], ids=["not named", "unknown"])
@pytest.mark.parametrize("choice", ["approve", "reject"])
def test_who_is_not_named_decides_nothing(finished: Any, who: Identity, choice: Any) -> None:
    digest = finished.ask(approvers=("local:bob",))
    with pytest.raises(ApprovalRefused, match="does not count"):
        answer(finished, digest, choice, who)
    assert read_decision(finished.storage, digest) is None


def test_somebody_unknown_approves_only_where_the_request_allows_it(finished: Any) -> None:
    digest = finished.ask()
    with pytest.raises(ApprovalRefused, match="no verified identity"):
        answer(finished, digest, who=UNAUTHENTICATED)
    allowed = finished.ask("allowed", allow_unauthenticated=True)
    answer(finished, allowed, who=UNAUTHENTICATED)
    assert use(finished, allowed)["approval"] == allowed


def test_a_local_user_is_no_proof_where_a_token_is_asked_for(finished: Any) -> None:
    digest = finished.ask(
        identity="oidc", issuer="https://issuer.example.com", audience="tunegate", approvers=("local:bob",)
    )
    with pytest.raises(ApprovalRefused, match=r"ID token of https://issuer\.example\.com"):
        answer(finished, digest)


def test_a_decision_that_was_written_by_hand_is_held_against_the_rules_again(finished: Any) -> None:
    digest = finished.ask(approvers=("local:bob",))
    forged = Decision(digest, "approve", Identity("local:eve", "local"), "trust me", utc_now().isoformat())
    write_decision(finished.storage, forged)
    with pytest.raises(ApprovalRefused, match="local:eve"):
        use(finished, digest)
    assert read_alias(finished.storage, "champion").record is None


def test_nobody_known_asks_for_nothing(finished: Any) -> None:
    with pytest.raises(SettingsError, match="Nobody knows who asks"):
        finished.ask(requester=UNAUTHENTICATED)
    assert list_versions(finished.storage) == []


@pytest.mark.parametrize(
    "settings",
    [{"identity": "oidc", "approvers": ("ann",)}, {"identity": "kubernetes"}],
    ids=["no issuer", "anybody in the cluster"],
)
def test_rules_under_which_nobody_or_anybody_could_approve_are_refused(finished: Any, settings: Any) -> None:
    with pytest.raises(SettingsError, match=r"recipe\.approve is incomplete"):
        finished.ask(**settings)


# What changed since it was asked.


def test_an_approval_that_lay_too_long_is_not_used_and_one_that_was_used_in_time_is(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = finished.ask(expires_seconds=60, use_within_seconds=60)
    answer(finished, digest)
    request = read_request(finished.storage, digest)
    last = datetime.datetime.fromisoformat(request.use_before) - datetime.timedelta(seconds=1)
    monkeypatch.setattr("tunegate.registry.requested.utc_now", lambda: last + datetime.timedelta(seconds=1))
    with pytest.raises(ApprovalRefused, match="does not count") as caught:
        use(finished, digest)
    assert caught.value.expected == f"a promotion before {request.use_before}"
    assert read_alias(finished.storage, "champion").record is None
    monkeypatch.setattr("tunegate.registry.requested.utc_now", lambda: last)
    first = use(finished, digest)
    monkeypatch.setattr("tunegate.registry.requested.utc_now", lambda: last + datetime.timedelta(days=9))
    assert use(finished, digest, "retry") == first  # it is done: a retry says so


def test_an_alias_that_moved_since_voids_request_and_approval(finished: Any, finish: Callable[..., Any]) -> None:
    waiting, approved = finished.ask(), finished.ask("other", approvers=("local:bob",))
    answer(finished, approved)
    other = moved_elsewhere(finished, finish("two"))
    for step in (lambda: answer(finished, waiting), lambda: use(finished, approved)):
        with pytest.raises(ApprovalRefused, match="has changed since") as caught:
            step()
        (change,) = caught.value.items
        assert f"alias champion: promote to {other}" in change
        assert "it pointed at nothing" in change
    assert read_decision(finished.storage, waiting) is None


def test_an_alias_that_moved_and_came_back_voids_it_as_well(finished: Any, finish: Callable[..., Any]) -> None:
    moved_elsewhere(finished, finish("two"))
    digest = finished.ask()
    answer(finished, digest)
    moved_elsewhere(finished, finish("three"))
    storage = finished.storage
    rollback(storage, read_alias(storage, "champion"))
    with pytest.raises(ApprovalRefused, match="alias champion: rollback"):
        use(finished, digest)


def retraining(finished: Any, holder: str, made_from: str = "1" * 64, **passed: float) -> Any:
    """The claim of a retraining that begins now, or so many hours later."""
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(**passed)
    return begin(finished.storage, "champion", made_from=made_from, holder=holder, seconds=3600, now=now).claim


def test_what_a_retraining_asked_for_is_promoted_with_what_it_was_made_from(finished: Any) -> None:
    digest = finished.ask(claim=retraining(finished, "run-1"))
    answer(finished, digest)
    end(finished.storage, "champion", holder="run-1")  # people promote after the run that asked has ended
    use(finished, digest)
    assert [record.made_from for record in history(finished.storage, "champion")] == ["1" * 64]


def test_what_an_overtaken_retraining_asked_for_can_be_neither_approved_nor_promoted(finished: Any) -> None:
    claim = retraining(finished, "run-1")
    waiting = finished.ask(claim=claim)
    approved = finished.ask("again", claim=claim, approvers=("local:bob",))
    answer(finished, approved)
    end(finished.storage, "champion", holder="run-1")
    retraining(finished, "run-2", "2" * 64)
    for step in (lambda: answer(finished, waiting), lambda: use(finished, approved)):
        with pytest.raises(ApprovalRefused, match="run-2 took it"):
            step()
    assert read_alias(finished.storage, "champion").record is None


def test_claim_on_another_alias_asks_for_nothing_and_another_claim_is_another_request(finished: Any) -> None:
    foreign = begin(finished.storage, "challenger", made_from="1" * 64, holder="run-1", seconds=60).claim
    with pytest.raises(InputError, match="not on the alias champion"):
        finished.ask(claim=foreign)
    assert list_requests(finished.storage) == []
    finished.ask(claim=retraining(finished, "run-1"))
    end(finished.storage, "champion", holder="run-1")
    with pytest.raises(OutputExistsError):  # what the claim before asked for is not taken for this one's
        finished.ask(claim=retraining(finished, "run-2"))


@pytest.mark.parametrize(("choice", "then"), [("reject", "refused"), ("approve", "changed")])
def test_what_a_person_refused_is_not_made_again(finished: Any, choice: str, then: str) -> None:
    digest = finished.ask(claim=retraining(finished, "run-1"))
    answer(finished, digest, choice)
    waiting.run(digest, registry=finished.registry, poll_seconds=1, environment={}, output=finished.folder / "answer")
    end(finished.storage, "champion", holder="run-1")
    begun = begin(finished.storage, "champion", made_from="1" * 64, holder="run-2", seconds=60)
    assert begun.decision == then
    if choice == "reject":
        assert "bob" in begun.reason and "looks right" in begun.reason


def test_approval_that_is_overtaken_between_the_last_look_and_the_move_moves_nothing(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = finished.ask(claim=retraining(finished, "run-1"))
    answer(finished, digest)
    looks = approved_step.refuse_unjudged

    def overtaken(*arguments: Any) -> None:
        retraining(finished, "run-2", "2" * 64, hours=9)
        looks(*arguments)

    monkeypatch.setattr(approved_step, "refuse_unjudged", overtaken)
    with pytest.raises(ConflictError, match="taken by somebody else"):
        use(finished, digest)
    assert history(finished.storage, "champion") == []


def test_an_approval_moves_the_alias_once(finished: Any, finish: Callable[..., Any]) -> None:
    digest = finished.ask()
    answer(finished, digest)
    first = use(finished, digest)
    assert use(finished, digest, "retry") == first  # the alias points there still: nothing moves
    assert len(history(finished.storage, "champion")) == 1
    moved_elsewhere(finished, finish("two"))
    for output in ("replay", "promotion"):
        with pytest.raises(ConflictError, match="approval was already used"):
            use(finished, digest, output)
    assert len(history(finished.storage, "champion")) == 2


def test_an_approval_of_another_request_does_not_count(finished: Any, finish: Callable[..., Any]) -> None:
    digest, other = finished.ask(), finish("two").ask()
    answer(finished, other)
    blob = finished.storage.read(f"approvals/decisions/{other}.json")
    finished.storage.write(f"approvals/decisions/{digest}.json", blob.data, if_generation_match=0)
    with pytest.raises(ArtifactError, match=other):
        use(finished, digest)
    document = json.loads(blob.data) | {"request": digest}
    key = f"approvals/decisions/{digest}.json"
    finished.storage.write(key, canonical_json(document), if_generation_match=None)
    request = read_request(finished.storage, digest)
    changed = dataclasses.replace(request, version=read_request(finished.storage, other).version)
    finished.storage.write(
        f"approvals/requests/{digest}.json", canonical_json(changed.to_json()), if_generation_match=None
    )
    with pytest.raises(ArtifactError, match="not what its name says"):
        use(finished, digest)


REPORTS = ["verdict", "parity", "evaluations/base", "evaluations/quantized", "lineage"]


@pytest.mark.parametrize("role", REPORTS)
def test_a_swapped_report_is_refused_by_name_when_somebody_approves(
    finished: Any, finish: Callable[..., Any], role: str
) -> None:
    """The other one is whole and its manifest agrees with it: the version knows that it is another."""
    digest, other = finished.ask(), finish("two").ask()
    shutil.rmtree(versions(finished, digest) / role)
    shutil.copytree(versions(finished, other) / role, versions(finished, digest) / role)
    with pytest.raises(ArtifactError) as caught:
        answer(finished, digest)
    assert caught.value.items == (f"{role}/{MANIFEST_NAME}: changed",)
    assert read_decision(finished.storage, digest) is None


@pytest.mark.parametrize("role", [*REPORTS, "adapter", "merged", "quantized"])
def test_a_swapped_part_is_refused_by_name_when_it_is_promoted(
    finished: Any, finish: Callable[..., Any], role: str
) -> None:
    digest, other = finished.ask(), finish("two").ask()
    answer(finished, digest)
    shutil.rmtree(versions(finished, digest) / role)
    shutil.copytree(versions(finished, other) / role, versions(finished, digest) / role)
    with pytest.raises((ApprovalRefused, ArtifactError), match=f"{role}"):
        use(finished, digest)
    assert read_alias(finished.storage, "champion").record is None


def test_every_file_of_a_version_changed_removed_or_renamed_is_refused_by_name(finished: Any) -> None:
    digest = finished.ask()
    answer(finished, digest)
    folder = versions(finished, digest)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert len(names) == 1 + 2 * len(read_request(finished.storage, digest).parts)
    for name in names:
        path, kept = folder / name, (folder / name).read_bytes()
        path.write_bytes(kept.replace(b"sha256", b"sha257", 1) if name.endswith(MANIFEST_NAME) else kept + b" ")
        _refused_by_name(finished, digest, name)
        path.unlink()
        _refused_by_name(finished, digest, name)
        path.with_name("renamed").write_bytes(kept)
        _refused_by_name(finished, digest, name)
        path.with_name("renamed").rename(path)
    (folder / "merged/added").write_text("")
    _refused_by_name(finished, digest, "merged/added")
    (folder / "merged/added").unlink()
    assert use(finished, digest)["approval"] == digest


def _refused_by_name(finished: Any, digest: str, name: str) -> None:
    with pytest.raises((ArtifactError, ApprovalRefused)) as caught:
        use(finished, digest)
    request = read_request(finished.storage, digest)
    said = str(caught.value)
    own = name.rsplit("/", 1)[-1]
    assert own in said or (name == MANIFEST_NAME and request.version in said), said


def test_an_edited_manifest_of_the_version_is_refused(finished: Any) -> None:
    """The roles' digests in it are no part of its own digest: they are held against the parts themselves."""
    digest = finished.ask()
    path = versions(finished, digest) / MANIFEST_NAME
    document = json.loads(path.read_text())
    document["parents"]["merged"] = "e" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="parents that its parts do not have: merged"):
        answer(finished, digest)


@pytest.mark.parametrize("fault", ["a check that fails", "no check", "other parts"])
def test_an_approved_version_that_the_gate_did_not_let_through_is_refused(finished: Any, fault: str) -> None:
    """Version, request and approval were written by hand, and agree with each other."""
    digest = finished.ask()
    folder, verdict = finished.folder / "forged", read_verdict(finished.inputs["verdict"])
    checks = {"a check that fails": (*verdict.checks, Check("margin", "FAIL", "lost")), "no check": ()}
    subjects = {**verdict.subjects, "merged": "e" * 64} if fault == "other parts" else verdict.subjects
    forged = dataclasses.replace(verdict, checks=checks.get(fault, verdict.checks), subjects=subjects)
    made = produce(folder, kind="verdict", parents=subjects, settings={}, build=forged.write)
    models = {kind: finished.inputs[kind] for kind in ("adapter", "merged", "quantized", "parity")}
    reports = {f"evaluations/{role}": path for role, path in finished.inputs["evaluations"].items()}
    parts = {role: Part(path, verify(path)) for role, path in (models | reports).items()}
    version = publish(finished.storage, {**parts, "verdict": Part(folder, made)})
    named = dict(show_version(finished.storage, version).parents)
    asked = dataclasses.replace(read_request(finished.storage, digest), version=version, parts=named)
    write_request(finished.storage, asked)
    answer(finished, asked.digest)
    with pytest.raises(ArtifactError, match="about other artifacts" if fault == "other parts" else "its checks do not"):
        use(finished, asked.digest)
    assert read_alias(finished.storage, "champion").record is None


# Expiry.


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self, start: datetime.datetime) -> None:
        self.time = start
        self.slept: list[float] = []

    def now(self) -> datetime.datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += datetime.timedelta(seconds=seconds)


def waited(finished: Any, digest: str, clock: Clock, poll_seconds: float = 10.0) -> Decision:
    request = read_request(finished.storage, digest)
    return waiting.wait(
        finished.storage, request, poll_seconds=poll_seconds, environment={}, sleep=clock.sleep, now=clock.now
    )


def test_a_request_that_nobody_answers_is_rejected_at_its_expiry_for_good(finished: Any) -> None:
    digest = finished.ask(expires_seconds=25)
    last = datetime.datetime.fromisoformat(read_request(finished.storage, digest).expires)
    clock = Clock(last - datetime.timedelta(seconds=25))
    assert waited(finished, digest, clock).decision == "expire"
    assert clock.slept == [10.0, 10.0, 5.0]
    assert waited(finished, digest, Clock(clock.time)).decision == "expire"  # tried again: it is the same answer
    for step in (lambda: answer(finished, digest), lambda: use(finished, digest)):
        with pytest.raises((ConflictError, ApprovalRefused), match=r"decided already|expired"):
            step()
    assert read_alias(finished.storage, "champion").record is None


def test_nobody_approves_after_expiry_though_no_step_was_waiting(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = finished.ask(expires_seconds=60)
    late = utc_now() + datetime.timedelta(seconds=61)
    monkeypatch.setattr(answering, "utc_now", lambda: late)
    with pytest.raises(ApprovalRefused, match="has expired"):
        answer(finished, digest)
    write_decision(finished.storage, Decision(digest, "approve", BOB, "by hand", late.isoformat()))
    with pytest.raises(ApprovalRefused, match="does not count") as caught:
        use(finished, digest)
    assert late.isoformat() in caught.value.seen


def test_an_approval_in_time_is_used_after_expiry(finished: Any) -> None:
    """A run that waited looks every few seconds: what was approved in the last one counts."""
    digest = finished.ask(expires_seconds=1)
    request = read_request(finished.storage, digest)
    write_decision(finished.storage, Decision(digest, "approve", BOB, "just in time", request.created))
    clock = Clock(datetime.datetime.fromisoformat(request.expires) + datetime.timedelta(hours=1))
    assert waited(finished, digest, clock).decision == "approve"
    assert use(finished, digest)["approval"] == digest


def test_waiting_goes_on_until_somebody_answers(finished: Any) -> None:
    digest = finished.ask()

    class Answered(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if len(self.slept) == 3:
                answer(finished, digest)

    clock = Answered(utc_now())
    assert waited(finished, digest, clock).approver == BOB
    assert clock.slept == [10.0] * 3


def test_who_answers_while_it_expires_was_first(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = finished.ask(expires_seconds=1)
    request = read_request(finished.storage, digest)
    real = waiting.write_decision

    def beaten(storage: Any, decision: Decision) -> Decision:
        real(storage, Decision(digest, "approve", BOB, "just in time", request.created))
        return real(storage, decision)

    monkeypatch.setattr(waiting, "write_decision", beaten)
    assert waited(finished, digest, Clock(datetime.datetime.fromisoformat(request.expires))).decision == "approve"


# Answering.


@pytest.mark.parametrize("text", ["approved", "Approve", "yes", "", "expire", "approve "])
def test_only_two_words_are_decisions(finished: Any, text: str) -> None:
    digest = finished.ask()
    with pytest.raises(InputError, match="not understood"):
        answering.run(digest, text, reason="why", registry=finished.registry, environment={})
    assert read_decision(finished.storage, digest) is None
    assert [parse_choice(word) for word in ("approve", "reject")] == ["approve", "reject"]


def test_a_decision_needs_a_reason(finished: Any) -> None:
    with pytest.raises(InputError, match="needs a reason"):
        answering.run(finished.ask(), "approve", reason="  ", registry=finished.registry, environment={})


def test_an_answer_is_told_to_the_webhook_once(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def hear(request: Request, decision: Decision | None, **_: Any) -> bool:
        told.append(decision.decision if decision else "asked")
        return True

    for module in (answering, waiting):
        monkeypatch.setattr(module, "tell", hear)
    monkeypatch.setattr("tunegate.approve.request.tell", hear)
    digest = finished.ask(webhook_url_env="HOOK")
    finished.ask("again", webhook_url_env="HOOK")
    answer(finished, digest)
    answer(finished, digest)
    expired = finished.ask("soon over", webhook_url_env="HOOK", expires_seconds=1)
    waited(finished, expired, Clock(utc_now()))
    assert told == ["asked", "approve", "asked", "expire"]


def test_approval_works_in_a_bucket_as_in_a_folder(finish: Callable[..., Any], gcs_bucket: str) -> None:
    finished = finish(registry=f"{gcs_bucket}/models")
    verified = {"requester": Identity("ann@example.com", "oidc"), "approvers": ("bob@example.com",)}
    proof = {"identity": "oidc", "issuer": "https://issuer.example.com", "audience": "tunegate"}
    digest = finished.ask(**verified, **proof)
    assert find_request(finished.storage, digest[:10]).digest == digest
    answer(finished, digest, who=Identity("bob@example.com", "oidc"))
    assert use(finished, digest)["approval"] == digest


# Signatures.


@pytest.mark.parametrize("required", [True, False])
def test_what_was_asked_for_signed_is_promoted_signed(
    finished: Any, tmp_path: Path, key_pair: Any, required: bool
) -> None:
    """Whoever signs means it to be verified, whether signatures are required of everybody or not."""
    signing = key_pair(tmp_path)
    digest = finished.ask(signing=dataclasses.replace(signing, require_signature=required))
    answer(finished, digest)
    with pytest.raises(SettingsError, match="--public-key"):  # promoting cannot leave the signature out
        use(finished, digest)
    assert read_alias(finished.storage, "champion").record is None
    verifying = dataclasses.replace(signing, private_key="")
    assert use(finished, digest, signing=verifying)["signed"] is True


def test_a_version_that_is_signed_is_not_promoted_unseen(finished: Any, tmp_path: Path, key_pair: Any) -> None:
    """Its own request asks for no signature: it is another, earlier one that was made with a key."""
    signing = key_pair(tmp_path)
    finished.ask("signed", signing=signing)
    digest = finished.ask()
    answer(finished, digest)
    with pytest.raises(ArtifactError, match="--public-key"):
        use(finished, digest)
    assert read_alias(finished.storage, "champion").record is None
    assert use(finished, digest, signing=dataclasses.replace(signing, private_key=""))["signed"] is True


@pytest.mark.parametrize("loss", ["gone", "of another version", "by another key"])
def test_without_the_right_signature_nothing_is_promoted(
    finished: Any, finish: Callable[..., Any], tmp_path: Path, key_pair: Any, loss: str
) -> None:
    signing = key_pair(tmp_path)
    digest = finished.ask(signing=signing)
    answer(finished, digest)
    bundle = Path(finished.registry) / "signatures" / f"{read_request(finished.storage, digest).version}.json"
    if loss == "gone":
        bundle.unlink()
    elif loss == "of another version":
        other = finish("two")
        of_other = read_request(other.storage, other.ask(signing=signing)).version
        bundle.write_bytes(bundle.with_name(f"{of_other}.json").read_bytes())
    else:
        signing = key_pair(tmp_path, "other")
    with pytest.raises(ArtifactError, match="signature of version"):
        use(finished, digest, signing=signing)
    assert read_alias(finished.storage, "champion").record is None
