"""Who is asking: only what an issuer signed, or what the cluster vouches for, is taken for a name."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tunegate.approve.identity import identify
from tunegate.approve.service_account import verify_service_account
from tunegate.contracts.approval import UNAUTHENTICATED, Identity, Rules
from tunegate.contracts.errors import ApprovalRefused, RunError, TunegateError

ISSUER, AUDIENCE, BUCKET = "https://issuer.example.com", "tunegate", "gs://bucket/registry"


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def other_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_set(**keys: rsa.RSAPrivateKey) -> dict[str, Any]:
    return {
        "keys": [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": name, "alg": "RS256"}
            for name, key in keys.items()
        ]
    }


@pytest.fixture
def rules(tmp_path: Path, key: rsa.RSAPrivateKey) -> Rules:
    (tmp_path / "keys.json").write_text(json.dumps(key_set(one=key)))
    return Rules(
        "oidc",
        ("ann@example.com",),
        issuer=ISSUER,
        audience=AUDIENCE,
        jwks=str(tmp_path / "keys.json"),
        token_env="TOKEN",
    )


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    plain = {"iss": ISSUER, "aud": AUDIENCE, "sub": "42", "email": "ann@example.com", "email_verified": True}
    return {**plain, "iat": now, "exp": now + 600, **changes}


def token(key: Any, *, algorithm: str = "RS256", kid: str = "one", **changes: Any) -> str:
    return jwt.encode(
        {k: v for k, v in claims(**changes).items() if v is not None}, key, algorithm, headers={"kid": kid}
    )


def who(rules: Rules, token: str, registry: str = BUCKET) -> Identity:
    return identify(rules, registry=registry, environment={"TOKEN": token})


def test_a_token_that_holds_names_the_person_and_is_not_kept(rules: Rules, key: rsa.RSAPrivateKey) -> None:
    given = token(key)
    found = who(rules, given)
    assert (found.name, found.method) == ("ann@example.com", "oidc")
    assert found.evidence["sub"] == "42"
    assert given not in json.dumps(dataclasses.asdict(found))


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda key, other: token(other), "Signature verification failed"),
        (lambda key, other: token(key, iss="https://elsewhere.example.com"), "Invalid issuer"),
        (lambda key, other: token(key, aud="another"), "Audience"),
        (lambda key, other: token(key, exp=int(time.time()) - 120), "expired"),
        (lambda key, other: token(key, exp=None), "exp"),
        (lambda key, other: token(key, sub=None), "sub"),
        (lambda key, other: token(key, iat=int(time.time()) + 600), "not yet valid"),
        (lambda key, other: token(key, kid="two"), "0 of the issuer's 1 keys"),
        (lambda key, other: token("s" * 32, algorithm="HS256"), "alg"),
        (lambda key, other: token(None, algorithm="none"), "alg"),
        (lambda key, other: "no token at all", "DecodeError"),
    ],
    ids=[
        "key",
        "issuer",
        "audience",
        "expired",
        "no expiry",
        "no subject",
        "future",
        "kid",
        "shared",
        "none",
        "garbage",
    ],
)
def test_a_token_that_does_not_hold_is_refused_and_never_told(
    rules: Rules, key: rsa.RSAPrivateKey, other_key: rsa.RSAPrivateKey, forge: Callable[..., str], said: str
) -> None:
    given = forge(key, other_key)
    with pytest.raises(ApprovalRefused, match="does not count") as caught:
        who(rules, given)
    assert said in caught.value.seen
    assert given not in str(caught.value)


def test_an_address_that_the_issuer_did_not_verify_is_no_name(rules: Rules, key: rsa.RSAPrivateKey) -> None:
    assert who(rules, token(key, email_verified=False)).name == "sub:42"


def test_a_subject_that_looks_like_an_approvers_address_is_not_that_approver(
    rules: Rules, key: rsa.RSAPrivateKey
) -> None:
    found = who(rules, token(key, sub="ann@example.com", email=None))
    assert found.name == "sub:ann@example.com"
    assert found.name not in rules.approvers


def test_two_names_of_one_subject_are_one_person_and_one_name_of_two_is_too(
    rules: Rules, key: rsa.RSAPrivateKey
) -> None:
    named, unnamed = who(rules, token(key)), who(rules, token(key, email_verified=False))
    other = who(rules, token(key, sub="43", email="bob@example.com"))
    assert named.name != unnamed.name
    assert named.is_same_person(unnamed)
    assert not named.is_same_person(other)
    assert not Identity("local:ann", "local").is_same_person(Identity("local:bob", "local"))  # neither has a subject


def test_without_a_token_nobody_is_known_and_the_user_of_the_machine_does_not_stand_in(
    rules: Rules, tmp_path: Path
) -> None:
    assert who(rules, "") == UNAUTHENTICATED
    assert who(rules, "", registry=str(tmp_path)) == UNAUTHENTICATED


def test_the_token_may_lie_in_a_file(rules: Rules, key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token(key) + "\n")
    in_file = dataclasses.replace(rules, token_file=str(tmp_path / "token"))
    assert identify(in_file, registry=BUCKET, environment={}).name == "ann@example.com"


def test_the_user_of_this_machine_is_a_name_for_its_folders_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    found = identify(Rules(), registry=str(tmp_path), environment={"USER": "somebody-else"})
    assert found.method == "local"
    assert found.name.startswith("local:")
    assert "somebody-else" not in found.name
    assert identify(Rules(), registry=BUCKET, environment={}) == UNAUTHENTICATED
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert identify(Rules(), registry=str(tmp_path), environment=pod) == UNAUTHENTICATED


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP server whose answers a test sets: path → (status, document). It keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        answers: dict[str, tuple[int, Any]] = {}  # noqa: RUF012 - one class a test
        taken: list[tuple[str, Any]] = []  # noqa: RUF012

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.taken.append((self.path, json.loads(self.rfile.read(length)) if length else None))
            status, document = self.answers.get(self.path, (404, {}))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", document)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.address = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
    yield running
    running.shutdown()
    running.server_close()


def test_the_keys_are_found_through_the_issuers_own_description(
    server: Any, rules: Rules, key: rsa.RSAPrivateKey, other_key: rsa.RSAPrivateKey
) -> None:
    described = {"issuer": server.address, "jwks_uri": f"{server.address}/keys"}
    server.RequestHandlerClass.answers |= {
        "/.well-known/openid-configuration": (200, described),
        "/keys": (200, key_set(old=other_key, one=key)),
    }
    discovered = dataclasses.replace(rules, issuer=server.address, jwks="")
    assert who(discovered, token(key, iss=server.address)).name == "ann@example.com"
    described["issuer"] = "https://another.example.com"
    with pytest.raises(RunError, match=r"another\.example\.com"):
        who(discovered, token(key, iss=server.address))


def test_keys_are_never_taken_from_where_an_address_redirects_to(
    server: Any, rules: Rules, key: rsa.RSAPrivateKey
) -> None:
    """The first address may be https, and the second anybody's."""
    elsewhere = f"{server.address}/keys"
    server.RequestHandlerClass.answers |= {"/moved": (302, elsewhere), "/keys": (200, key_set(one=key))}
    with pytest.raises(RunError, match=f"redirects to {elsewhere}"):
        who(dataclasses.replace(rules, jwks=f"{server.address}/moved"), token(key))
    assert [path for path, _ in server.RequestHandlerClass.taken] == ["/moved"]


@pytest.mark.parametrize("jwks", ["http://keys.example.com/jwks", "/no/such/file", "http://127.0.0.1:9/keys"])
def test_keys_that_cannot_be_had_safely_are_an_error_that_says_why(
    rules: Rules, key: rsa.RSAPrivateKey, jwks: str
) -> None:
    with pytest.raises(RunError, match="cannot be read") as caught:
        who(dataclasses.replace(rules, jwks=jwks), token(key))
    assert caught.value.exit_code == 1


REVIEW = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCOUNT = "system:serviceaccount:approvers:release"


def reviewed(server: Any, status: Any, code: int = 201, audience: str = AUDIENCE) -> Identity:
    """Asks the server as a cluster is asked, through the real client."""
    from kubernetes import client

    document = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status}
    server.RequestHandlerClass.answers[REVIEW] = (code, document)
    configuration = client.Configuration(host=server.address)
    configuration.retries = False
    rules = Rules("kubernetes", (ACCOUNT,), audience=audience, token_env="TOKEN")
    return verify_service_account("a.b.c", rules, client.ApiClient(configuration))


def test_the_cluster_names_the_service_account(server: Any) -> None:
    status = {"authenticated": True, "user": {"username": ACCOUNT, "uid": "u1"}, "audiences": [AUDIENCE]}
    found = reviewed(server, status)
    assert (found.name, found.method) == (ACCOUNT, "kubernetes")
    assert "a.b.c" not in json.dumps(dataclasses.asdict(found))
    ((path, sent),) = server.RequestHandlerClass.taken
    assert path == REVIEW
    assert sent["spec"] == {"token": "a.b.c", "audiences": [AUDIENCE]}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"authenticated": False, "error": "token has expired"}, "token has expired"),
        ({"user": {"username": ACCOUNT}}, "does not know it"),
        ({"authenticated": True, "user": {"username": ACCOUNT}, "audiences": ["vault"]}, "for vault"),
        ({"authenticated": True, "user": {"username": ACCOUNT}}, "for nobody"),
        ({"authenticated": True, "user": {"username": "ann"}, "audiences": [AUDIENCE]}, "of ann"),
    ],
    ids=["expired", "unknown", "for others", "audience ignored", "no service account"],
)
def test_what_the_cluster_does_not_vouch_for_is_refused(server: Any, status: Any, said: str) -> None:
    with pytest.raises(ApprovalRefused) as caught:
        reviewed(server, status)
    assert said in caught.value.seen
    assert "a.b.c" not in str(caught.value)


def test_a_cluster_that_does_not_answer_is_a_failure_and_no_refusal(server: Any) -> None:
    with pytest.raises(TunegateError, match="create on tokenreviews") as caught:
        reviewed(server, {}, code=403)
    assert "auth-delegator" not in str(caught.value)  # which may also ask what anybody may do
    assert (type(caught.value), caught.value.exit_code) == (RunError, 1)
    assert "a.b.c" not in str(caught.value)


def test_a_service_account_is_looked_for_in_the_file_of_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("tunegate.approve.identity.POD_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setattr(
        "tunegate.approve.identity.verify_service_account",
        lambda token, rules, api: asked.append(token) or UNAUTHENTICATED,
    )
    rules = Rules("kubernetes", (ACCOUNT,))
    assert identify(rules, registry=BUCKET, environment={}) == UNAUTHENTICATED
    assert asked == []
    (tmp_path / "token").write_text("a.b.c\n")
    identify(rules, registry=BUCKET, environment={})
    assert asked == ["a.b.c"]
