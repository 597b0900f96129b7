"""A webhook is told, within bounds, and never has a say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tunegate.approve.webhook import ATTEMPTS, tell, tell_refused
from tunegate.contracts.approval import Decision, Identity, Request, Rules
from tunegate.contracts.verdict import Verdict

ANN, BOB = Identity("ann@example.com", "oidc"), Identity("bob@example.com", "oidc")
REQUEST = Request(
    alias="champion", generation=3, current="a" * 64, version="b" * 64, parts={"verdict": "c" * 64},
    policy_digest="d" * 64, summary="All 9 checks hold.", requester=ANN, rules=Rules(webhook_url_env="HOOK"),
    created="2026-11-25T12:00:00+00:00", expires="2026-11-28T12:00:00+00:00",
    use_before="2026-12-01T12:00:00+00:00",
)  # fmt: skip


class Hook(BaseHTTPRequestHandler):
    """Answers with the statuses it is given, one after the other, then with 200."""

    statuses: list[int]
    taken: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.statuses.pop(0) if self.statuses else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[type[Hook]]:
    handler = type("OneHook", (Hook,), {"statuses": [], "taken": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    handler.address = f"http://127.0.0.1:{server.server_port}/secret-path"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def call(hook: Any, decision: Decision | None = None, environment: dict[str, str] | None = None) -> bool:
    given = {"HOOK": hook.address} if environment is None else environment
    return tell(REQUEST, decision, registry="gs://bucket/registry", environment=given, sleep=lambda _: None)


def test_a_request_is_told_as_it_is_documented(hook: Any) -> None:
    assert call(hook)
    assert hook.taken == [
        (
            "application/json",
            {
                "schema_version": 1, "event": "requested", "request": REQUEST.digest,
                "verdict": "PASS",
                "registry": "gs://bucket/registry", "alias": "champion", "version": "b" * 64, "replaces": "a" * 64,
                "summary": "All 9 checks hold.", "requester": "ann@example.com",
                "expires": "2026-11-28T12:00:00+00:00", "approver": None, "reason": None,
            },
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "event"), [("approve", "approved"), ("reject", "rejected"), ("expire", "expired")]
)
def test_an_answer_is_told_with_who_gave_it_and_why(hook: Any, decision: Any, event: str) -> None:
    assert call(hook, Decision(REQUEST.digest, decision, BOB, "looks right", "2026-11-25T13:00:00+00:00"))
    told = hook.taken[0][1]
    assert (told["event"], told["approver"], told["reason"]) == (event, "bob@example.com", "looks right")


@pytest.mark.parametrize("decision", ["FAIL", "INCONCLUSIVE"])
def test_a_verdict_that_asks_nobody_anything_is_told_too(hook: Any, decision: Any) -> None:
    verdict = Verdict(decision, "1 of 9 checks fails.", (), {}, "d" * 64)
    place = {"alias": "champion", "registry": "gs://bucket/registry", "webhook_url_env": "HOOK"}
    assert tell_refused(verdict, **place, environment={"HOOK": hook.address})
    assert hook.taken[0][1] == {
        "schema_version": 1, "event": "refused", "verdict": decision, "registry": "gs://bucket/registry",
        "alias": "champion", "summary": "1 of 9 checks fails.",
    }  # fmt: skip


def test_a_stumbling_webhook_is_called_again(hook: Any) -> None:
    hook.statuses = [503, 500]
    assert call(hook)
    assert len(hook.taken) == 3


def test_a_broken_webhook_is_given_up_and_said_and_its_address_is_not(hook: Any, capsys: Any) -> None:
    hook.statuses = [500] * 9
    assert not call(hook)
    assert len(hook.taken) == ATTEMPTS
    said = capsys.readouterr().out
    assert "the webhook in HOOK did not answer: HTTPError 500" in said
    assert "secret-path" not in said
    assert not call(hook, environment={"HOOK": "http://127.0.0.1:9/secret-path"})
    assert "secret-path" not in capsys.readouterr().out


@pytest.mark.parametrize("environment", [{}, {"HOOK": "file:///etc/passwd"}])
def test_a_webhook_without_an_address_is_said(hook: Any, environment: dict[str, str], capsys: Any) -> None:
    assert not call(hook, environment=environment)
    assert "HOOK holds no http(s) address" in capsys.readouterr().out
    assert hook.taken == []
