"""The registry's own rules: whoever asks cannot loosen them, when asking, when somebody answers, or when it is used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunegate.approve import decide as answering
from tunegate.approve.decide import decide
from tunegate.cli import app
from tunegate.contracts.approval import Decision, Identity, Request, Rules, utc_now
from tunegate.contracts.approval_minimum import Minimum, looser, parse_minimum
from tunegate.contracts.errors import ApprovalRefused, ArtifactError, SettingsError
from tunegate.promote.approved import run as promote_approved
from tunegate.promote.settings import PromoteSettings
from tunegate.promote.step import run as promote_unasked
from tunegate.registry.aliases import read_alias
from tunegate.registry.approvals import list_requests, read_decision, read_request, write_decision, write_request
from tunegate.registry.minimum import KEY, read_minimum, write_minimum
from tunegate.registry.settings import SigningSettings
from tunegate.registry.versions import list_versions

ANN, BOB, EVE = (Identity(f"{name}@example.com", "oidc") for name in ("ann", "bob", "eve"))
STRICT = {
    "identity": "oidc", "issuer": "https://issuer.example.com", "audience": "tunegate",
    "jwks": "https://issuer.example.com/keys", "approvers": ("bob@example.com", "cy@example.com"),
}  # fmt: skip


@pytest.fixture
def strict(finished: Any) -> Any:
    """A registry whose administrator said who approves, and whose word counts for who that is."""
    write_minimum(finished.storage, Minimum(**STRICT))
    return finished


def approve(finished: Any, digest: str, who: Identity = BOB) -> Decision:
    return decide(finished.storage, read_request(finished.storage, digest), "approve", who, "looks right", {})


def use(finished: Any, digest: str) -> None:
    promote_approved(
        SigningSettings(), registry=finished.registry, request=digest, output=finished.folder / "promotion"
    )


LOOSER = {
    "identity": {"identity": "kubernetes"},
    "issuer": {"issuer": "https://evil.example.com"},
    "audience": {"audience": "another"},
    "jwks": {"jwks": "https://evil.example.com/keys"},
    "approvers": {"approvers": ("bob@example.com", "eve@example.com")},
    "allow_requester": {"allow_requester": True},
    "allow_unauthenticated": {"allow_unauthenticated": True},
}


@pytest.mark.parametrize("rule", LOOSER)
def test_a_request_cannot_choose_a_looser_rule_and_is_told_which(strict: Any, rule: str) -> None:
    with pytest.raises(SettingsError, match="looser than the registry allows") as caught:
        strict.ask(requester=ANN, **(STRICT | LOOSER[rule]))
    (item,) = caught.value.items
    assert item.startswith(f"approve.{rule}: ")
    assert (list_versions(strict.storage), list_requests(strict.storage)) == ([], [])


def test_rules_compare_name_by_name_and_a_stricter_request_holds() -> None:
    minimum = Minimum(**STRICT, require_signature=True)
    rules = Rules(**STRICT, require_signature=True)
    assert looser(rules, minimum) == []
    assert looser(dataclasses.replace(rules, approvers=("bob@example.com",)), minimum) == []
    assert looser(dataclasses.replace(rules, require_signature=False), minimum) == [
        "signing.require_signature: is False, must be True"
    ]
    anybody = looser(dataclasses.replace(rules, approvers=()), minimum)
    assert anybody == ["approve.approvers: lets anybody approve, must be some of bob@example.com, cy@example.com"]
    lenient = Minimum(**STRICT, allow_requester=True, allow_unauthenticated=True)
    assert looser(dataclasses.replace(rules, allow_requester=True, allow_unauthenticated=True), lenient) == []


def test_what_holds_to_the_registrys_rules_is_approved_and_promoted(strict: Any) -> None:
    digest = strict.ask(requester=ANN, **STRICT)
    assert read_request(strict.storage, digest).minimum["approvers"] == list(STRICT["approvers"])
    approve(strict, digest)
    use(strict, digest)
    assert read_alias(strict.storage, "champion").record is not None
    page = (strict.folder / "asked/page.html").read_text()
    for said in (STRICT["issuer"], STRICT["jwks"], "the registry&#x27;s own", "promote before"):
        assert said in page, said


def test_a_page_says_that_whoever_asked_chose_the_rules_where_the_registry_has_none(finished: Any) -> None:
    finished.ask(requester=ANN, **(STRICT | {"jwks": ""}))
    page = (finished.folder / "asked/page.html").read_text()
    assert "chosen by whoever asked" in page
    assert "as the issuer itself says" in page


@pytest.mark.parametrize("when", ["answered", "used"])
def test_rules_that_changed_since_void_the_request_and_are_named(strict: Any, when: str) -> None:
    digest = strict.ask(requester=ANN, **STRICT)
    if when == "used":
        approve(strict, digest)
    write_minimum(strict.storage, Minimum(**STRICT, allow_requester=True))  # looser: it would hold to these
    with pytest.raises(ApprovalRefused, match="has changed since") as caught:
        approve(strict, digest) if when == "answered" else use(strict, digest)
    assert caught.value.items == ("rules of the registry: allow_requester is True, was False",)
    assert read_alias(strict.storage, "champion").record is None


def test_rules_that_came_after_the_request_bind_it(finished: Any) -> None:
    digest = finished.ask(requester=ANN, **STRICT)
    write_minimum(finished.storage, Minimum(**STRICT))
    with pytest.raises(ApprovalRefused, match="has changed since") as caught:
        approve(finished, digest)
    assert "rules of the registry: required is True, was 'not said'" in caught.value.items


def _written_by_hand(finished: Any) -> Request:
    """A request that names the registry's rules and holds to others, as whoever may write there could leave it."""
    asked = read_request(finished.storage, finished.ask(requester=ANN, **STRICT))
    rules = dataclasses.replace(asked.rules, approvers=("eve@example.com",), jwks="https://evil.example.com/keys")
    forged = dataclasses.replace(asked, rules=rules)
    write_request(finished.storage, forged)
    return forged


def test_a_request_written_by_hand_under_looser_rules_is_refused_by_name(strict: Any) -> None:
    forged = _written_by_hand(strict)
    with pytest.raises(ApprovalRefused, match="looser rules than the registry's") as caught:
        approve(strict, forged.digest, EVE)
    assert [item.split(":")[0] for item in caught.value.items] == ["approve.jwks", "approve.approvers"]
    write_decision(strict.storage, Decision(forged.digest, "approve", EVE, "trust me", utc_now().isoformat()))
    with pytest.raises(ApprovalRefused, match="looser rules than the registry's"):
        use(strict, forged.digest)
    assert read_alias(strict.storage, "champion").record is None


def test_keys_that_the_registry_does_not_name_are_not_even_asked(strict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = _written_by_hand(strict)
    asked: list[Any] = []
    monkeypatch.setattr(answering, "identify", lambda *rest, **_: asked.append(rest))
    with pytest.raises(ApprovalRefused, match="looser rules"):
        answering.run(forged.digest, "approve", reason="why", registry=strict.registry, environment={})
    assert (asked, read_decision(strict.storage, forged.digest)) == ([], None)


def test_nothing_is_promoted_unasked_where_the_registry_says_that_somebody_must_approve(strict: Any) -> None:
    place = {"registry": strict.registry, "output": strict.folder / "promotion"}
    with pytest.raises(SettingsError, match="looser than the registry allows") as caught:
        promote_unasked(PromoteSettings("champion"), **strict.inputs, **place)
    assert caught.value.items == ("approve.required: is False, must be True",)
    assert list_versions(strict.storage) == []
    write_minimum(strict.storage, Minimum(required=False, require_signature=True))
    with pytest.raises(SettingsError, match=r"signing\.require_signature: is False"):
        promote_unasked(PromoteSettings("champion"), **strict.inputs, **place)
    write_minimum(strict.storage, Minimum(required=False))
    promote_unasked(PromoteSettings("champion"), **strict.inputs, **place)
    assert read_alias(strict.storage, "champion").record is not None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1, "requierd": true}', '{"schema_version": 2}'])
def test_rules_that_cannot_be_read_allow_nothing(finished: Any, text: str) -> None:
    finished.storage.write(KEY, text.encode(), if_generation_match=0)
    with pytest.raises(ArtifactError, match=r"approvals/rules\.json"):
        finished.ask()
    assert list_versions(finished.storage) == []


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"approver": ["bob"]}, "did you mean 'approvers'"),
        ({"identity": "oidc", "approvers": ["bob"]}, "without issuer, audience"),
        ({"identity": "kubernetes"}, "without approvers"),
    ],
    ids=["misspelt", "no issuer", "anybody in the cluster"],
)
def test_rules_that_would_bind_nobody_are_not_written(document: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_minimum(document, where="rules.yaml")


def test_the_command_shows_and_writes_the_rules(finished: Any, tmp_path: Path) -> None:
    command = ["registry", "rules", finished.registry]
    assert "each recipe says its own" in CliRunner().invoke(app, command).output
    rules = tmp_path / "rules.yaml"
    rules.write_text("approvers: [local:bob]\nrequire_signature: true\n")
    shown = CliRunner().invoke(app, [*command, "--set", str(rules), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == Minimum(approvers=("local:bob",), require_signature=True).to_json()
    assert read_minimum(finished.storage) == Minimum(approvers=("local:bob",), require_signature=True)
    rules.write_text("- local:bob\n")
    refused = CliRunner().invoke(app, [*command, "--set", str(rules)])
    assert (refused.exit_code, "is not a mapping" in refused.output) == (2, True)
    assert read_minimum(finished.storage) == Minimum(approvers=("local:bob",), require_signature=True)


def test_rules_bind_in_a_bucket_as_in_a_folder(finish: Callable[..., Any], gcs_bucket: str) -> None:
    finished = finish(registry=f"{gcs_bucket}/models")
    write_minimum(finished.storage, Minimum())
    write_minimum(finished.storage, Minimum(**STRICT))
    with pytest.raises(SettingsError, match=r"approve\.issuer"):
        finished.ask(requester=ANN, **(STRICT | LOOSER["issuer"]))
    digest = finished.ask(requester=ANN, **STRICT)
    approve(finished, digest)
    use(finished, digest)
    assert read_alias(finished.storage, "champion").record is not None
