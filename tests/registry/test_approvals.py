"""Requests and decisions in a registry: bound to what they are about, written once, answered once."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.approval import Decision, Identity, Request, Rules
from tunegate.contracts.errors import ArtifactError, ConflictError, InputError
from tunegate.contracts.files import canonical_json, sha256_json
from tunegate.registry.aliases import promote, read_alias
from tunegate.registry.approvals import (
    find_request,
    open_request,
    read_decision,
    read_request,
    versions_asked_for,
    write_decision,
    write_request,
)
from tunegate.registry.records import Record, read_record
from tunegate.registry.versions import Part, publish
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

NOON = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
ANN, BOB = Identity("local:ann", "local"), Identity("local:bob", "local")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "registry"))


def request(**changes: Any) -> Request:
    plain = {
        "alias": "champion", "generation": 0, "current": None, "version": "a" * 64,
        "parts": {"verdict": "b" * 64, "merged": "c" * 64}, "policy_digest": "d" * 64, "summary": "All hold.",
        "requester": ANN, "rules": Rules(approvers=("local:bob",)), "created": NOON.isoformat(),
        "expires": (NOON + HOUR).isoformat(), "use_before": (NOON + 3 * HOUR).isoformat(),
    }  # fmt: skip
    return Request(**{**plain, **changes})


def decision(of: Request, said: Any = "approve", who: Identity = BOB) -> Decision:
    return Decision(of.digest, said, who, "looks right", NOON.isoformat())


def test_a_request_comes_back_as_it_was_and_is_found_by_its_first_letters(storage: Storage) -> None:
    asked = request()
    digest = write_request(storage, asked)
    assert write_request(storage, asked) == digest
    assert read_request(storage, digest) == find_request(storage, digest[:8]) == asked
    for text in ("", "z", "../aliases/champion"):
        with pytest.raises(InputError, match=r"does not name|no approval request"):
            find_request(storage, text)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "e" * 64},
        {"parts": {"verdict": "b" * 64, "merged": "e" * 64}},
        {"policy_digest": "e" * 64},
        {"alias": "other"},
        {"generation": 7},
        {"requester": BOB},
        {"rules": Rules(allow_requester=True)},
        {"expires": (NOON + 2 * HOUR).isoformat()},
        {"use_before": (NOON + 9 * HOUR).isoformat()},
        {"minimum": {"required": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_request_that_was_edited_in_any_field_is_refused(storage: Storage, change: dict[str, Any]) -> None:
    digest = write_request(storage, request())
    edited = canonical_json(request(**change).to_json())
    storage.write(f"approvals/requests/{digest}.json", edited, if_generation_match=None)
    with pytest.raises(ArtifactError, match="not what its name says"):
        read_request(storage, digest)


def test_the_first_answer_stands_and_the_same_one_again_is_no_second(storage: Storage) -> None:
    asked = request()
    write_request(storage, asked)
    assert read_decision(storage, asked.digest) is None
    first = write_decision(storage, decision(asked))
    later = dataclasses.replace(first, decided=(NOON + HOUR).isoformat())
    assert write_decision(storage, later) == first == read_decision(storage, asked.digest)
    for other in (decision(asked, "reject"), decision(asked, "approve", ANN), decision(asked, "expire")):
        with pytest.raises(ConflictError, match="decided already") as caught:
            write_decision(storage, other)
        assert "approve by local:bob" in caught.value.seen
    assert read_decision(storage, asked.digest) == first


def test_a_decision_that_was_copied_to_another_request_or_edited_is_refused(storage: Storage) -> None:
    one, two = request(), request(alias="other")
    write_decision(storage, decision(one))
    blob = storage.read(f"approvals/decisions/{one.digest}.json")
    assert blob is not None
    storage.write(f"approvals/decisions/{two.digest}.json", blob.data, if_generation_match=0)
    with pytest.raises(ArtifactError, match=one.digest):
        read_decision(storage, two.digest)
    for text in (b"{", b"[]", json.dumps({**json.loads(blob.data), "decision": "aprove"}).encode()):
        storage.write(f"approvals/decisions/{two.digest}.json", text, if_generation_match=None)
        with pytest.raises(ArtifactError, match="not what its name says"):
            read_decision(storage, two.digest)


def test_who_asks_again_the_same_while_it_is_open_is_given_the_first_request(storage: Storage) -> None:
    first = request()
    write_request(storage, first)
    later = {"expires": (NOON + 2 * HOUR).isoformat(), "use_before": (NOON + 4 * HOUR).isoformat()}
    again = request(created=(NOON + HOUR / 2).isoformat(), **later)
    assert open_request(storage, again, NOON) == first
    assert open_request(storage, request(generation=7), NOON) is None
    assert open_request(storage, again, NOON + HOUR) is None  # expired
    write_decision(storage, decision(first, "reject"))
    assert open_request(storage, again, NOON) is None


def test_versions_that_somebody_may_still_approve_or_promote_are_kept(storage: Storage, tiny_dataset: Path) -> None:
    from tunegate.contracts.manifest import verify

    version = publish(storage, {"data": Part(tiny_dataset, verify(tiny_dataset))})
    names = ("open", "approved", "rejected", "expired")
    asked = {name: request(version=sha256_json(name), alias=name) for name in names}
    asked["expired"] = dataclasses.replace(asked["expired"], expires=NOON.isoformat())
    for found in asked.values():
        write_request(storage, found)
    write_decision(storage, decision(asked["approved"]))
    write_decision(storage, decision(asked["rejected"], "reject"))
    kept = {asked[name].version for name in ("open", "approved")}
    assert versions_asked_for(storage, NOON) == kept
    assert versions_asked_for(storage, NOON + 2 * HOUR) == {asked["approved"].version}  # the open one is expired
    assert versions_asked_for(storage, NOON + 3 * HOUR) == set()  # and that approval lay too long to be used
    promote(storage, read_alias(storage, "approved"), version, verdict="v", attempt="another")
    assert versions_asked_for(storage, NOON) == {asked["open"].version}  # the alias moved: that approval is void


def test_a_record_names_the_approval_and_one_without_keeps_the_name_it_had(
    storage: Storage, tiny_dataset: Path
) -> None:
    """Registries that were written before there were approvals stay readable."""
    from tunegate.contracts.manifest import verify

    version = publish(storage, {"data": Part(tiny_dataset, verify(tiny_dataset))})
    move = promote(storage, read_alias(storage, "a"), version, verdict="v", attempt="r", approval="r")
    assert read_record(storage, move.record.digest).approval == "r"
    plain = Record("a", version, None, "v", "r", "promote")
    document = dataclasses.asdict(plain)
    del document["approval"], document["made_from"]
    assert plain.digest == sha256_json(document)
    assert plain.digest != dataclasses.replace(plain, approval="r").digest
