"""Lineage and signature: what a version was made from is a file of it, and nothing in it changes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.errors import ArtifactError, InputError, RunError, SettingsError
from tunegate.contracts.manifest import MANIFEST_NAME, sha256_file
from tunegate.registry.lineage import PREDICATE_TYPE, STATEMENT_TYPE, statement, with_lineage
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.registry.signatures import fetch_signed_version, read_signature, sign_version, verify_signature
from tunegate.registry.versions import Part, fetch_version, publish, show_version
from tunegate.storage.interface import Storage
from tunegate.storage.open import open_storage

BASE, ROWS = "b" * 64, "d" * 64


def make_parts(folder: Path, text: str = "one") -> dict[str, Part]:
    """An adapter made from a base and rows, and a merged model made from the adapter."""

    def make(kind: str, **parents: str) -> Part:
        def build(partial: Path) -> None:
            (partial / "nested").mkdir()
            (partial / "nested/weights").write_text(text * 100)

        made = produce(folder / kind, kind=kind, parents=parents, settings={"r": 16, "text": text}, build=build)
        return Part(folder / kind, made)

    adapter = make("adapter", base_model=BASE, dataset=ROWS)
    return {"adapter": adapter, "merged": make("merged", adapter=adapter.manifest.content_digest, base_model=BASE)}


@dataclasses.dataclass
class Signed:
    """A signed version, and a copy of it."""

    storage: Storage
    version: str
    copy: Path
    settings: SigningSettings


def sign(folder: Path, settings: SigningSettings, text: str = "one") -> Signed:
    storage = open_storage(str(folder / "registry"))
    with with_lineage(make_parts(folder / text, text)) as parts:
        version = publish(storage, parts)
    fetch_version(storage, version, folder / f"copy-{text}")
    sign_version(storage, version, folder / f"copy-{text}", settings, {})
    return Signed(storage, version, folder / f"copy-{text}", settings)


@pytest.fixture
def signed(tmp_path: Path, key_pair: Any) -> Signed:
    return sign(tmp_path, key_pair(tmp_path))


def test_the_statement_names_every_file_and_what_it_was_made_from(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    told = statement(parts)
    assert (told["_type"], told["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    files = {subject["name"]: subject["digest"]["sha256"] for subject in told["subject"]}
    assert set(files) == {f"{r}/{n}" for r in ("adapter", "merged") for n in (MANIFEST_NAME, "nested/weights")}
    assert files["adapter/nested/weights"] == sha256_file(tmp_path / "adapter/nested/weights")
    definition = told["predicate"]["buildDefinition"]
    materials = {m["name"]: m["digest"] for m in definition["resolvedDependencies"] if "digest" in m}
    assert materials["base_model"] == {"tunegateContent": BASE}
    assert materials["dataset"] == {"tunegateContent": ROWS}
    assert "adapter" not in materials  # it is a part, and no input from outside
    assert definition["externalParameters"]["adapter"]["r"] == 16
    assert told["predicate"]["runDetails"]["builder"]["version"]["tunegate"]


def test_image_and_commit_of_what_made_a_part_are_materials(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    manifest = dataclasses.replace(parts["adapter"].manifest, image="registry/train@sha256:1", commit="c" * 40)
    materials = statement({"adapter": Part(parts["adapter"].folder, manifest)})["predicate"]["buildDefinition"]
    assert {"name": "image", "uri": "registry/train@sha256:1"} in materials["resolvedDependencies"]
    assert {"name": "tunegate", "digest": {"gitCommit": "c" * 40}} in materials["resolvedDependencies"]


def test_the_statement_is_a_file_of_the_version_and_the_same_parts_are_the_same_version(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "registry"))
    parts = make_parts(tmp_path)
    versions = set()
    for _ in range(2):
        with with_lineage(parts) as whole:
            versions.add(publish(storage, whole))
    (version,) = versions
    fetch_version(storage, version, tmp_path / "copy")
    assert json.loads((tmp_path / "copy/lineage/statement.json").read_text()) == statement(parts)
    assert "lineage" in show_version(storage, version).parents


def test_a_signed_version_verifies_wherever_it_is_copied_to(signed: Signed, tmp_path: Path) -> None:
    fetch_signed_version(signed.storage, signed.version, tmp_path / "deployed", signed.settings)
    again = read_signature(signed.storage, signed.version)
    sign_version(signed.storage, signed.version, signed.copy, signed.settings, {})
    assert read_signature(signed.storage, signed.version) == again  # an elliptic signature would be another one


def test_model_signings_own_command_verifies_it(signed: Signed) -> None:
    bundle = Path(signed.storage.uri) / "signatures" / f"{signed.version}.json"
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed.copy), "--signature", str(bundle)]
    command += ["--public_key", signed.settings.public_key, "--no-ignore-git-paths"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (signed.copy / "merged/nested/weights").write_text("other")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def _change(copy: Path) -> str:
    (copy / "merged/nested/weights").write_text("other")
    return "merged/nested/weights"


def _add(copy: Path) -> str:
    (copy / "merged/.gitattributes").write_text("")
    return "merged/.gitattributes"


def _remove(copy: Path) -> str:
    (copy / "adapter/nested/weights").unlink()
    return "adapter/nested/weights"


def _rename(copy: Path) -> str:
    (copy / "adapter/nested/weights").rename(copy / "adapter/nested/other")
    return "adapter/nested/other"


def _edit_manifest(copy: Path) -> str:
    path = copy / MANIFEST_NAME
    path.write_text(path.read_text().replace(BASE, "e" * 64, 1).replace('"kind"', '"kind" '))
    return MANIFEST_NAME


def _edit_statement(copy: Path) -> str:
    path = copy / "lineage/statement.json"
    path.write_text(path.read_text().replace(BASE, "e" * 64))
    return "lineage/statement.json"


@pytest.mark.parametrize("tamper", [_change, _add, _remove, _rename, _edit_manifest, _edit_statement])
def test_whatever_is_changed_in_a_copy_is_refused_by_name(signed: Signed, tamper: Callable[[Path], str]) -> None:
    name = tamper(signed.copy)
    with pytest.raises(ArtifactError, match="does not count") as caught:
        verify_signature(signed.storage, signed.version, signed.copy, signed.settings)
    assert name in caught.value.seen


@pytest.mark.parametrize("tamper", [_change, _add, _remove, _rename, _edit_statement])
def test_whatever_is_changed_in_the_registry_is_refused_by_name(
    signed: Signed, tmp_path: Path, tamper: Callable[[Path], str]
) -> None:
    name = tamper(Path(signed.storage.uri) / "versions" / signed.version)
    with pytest.raises(ArtifactError, match=name):
        fetch_signed_version(signed.storage, signed.version, tmp_path / "deployed", signed.settings)


def test_the_signature_of_another_version_does_not_count(signed: Signed, tmp_path: Path) -> None:
    other = sign(tmp_path, signed.settings, "two")
    folder = Path(signed.storage.uri) / "signatures"
    (folder / f"{signed.version}.json").write_bytes((folder / f"{other.version}.json").read_bytes())
    with pytest.raises(ArtifactError, match="does not count") as caught:
        fetch_signed_version(signed.storage, signed.version, tmp_path / "deployed", signed.settings)
    assert "weights" in caught.value.seen


def test_another_key_does_not_count(signed: Signed, tmp_path: Path, key_pair: Any) -> None:
    other = key_pair(tmp_path, "other")
    with pytest.raises(ArtifactError, match="Key mismatch"):
        verify_signature(signed.storage, signed.version, signed.copy, other)


def test_a_folder_without_files_is_found_though_no_signature_speaks_of_it(signed: Signed, tmp_path: Path) -> None:
    (Path(signed.storage.uri) / "versions" / signed.version / "merged/empty").mkdir()
    with pytest.raises(ArtifactError, match="merged/empty"):
        fetch_signed_version(signed.storage, signed.version, tmp_path / "deployed", signed.settings)


def test_a_version_without_signature_is_refused_where_one_is_asked_for(tmp_path: Path, key_pair: Any) -> None:
    unsigned = sign(tmp_path, SigningSettings())
    assert read_signature(unsigned.storage, unsigned.version) is None
    assert verify_signature(unsigned.storage, unsigned.version, unsigned.copy, SigningSettings()) is False
    with pytest.raises(ArtifactError, match="no signature"):
        verify_signature(unsigned.storage, unsigned.version, unsigned.copy, key_pair(tmp_path))


def test_a_key_with_a_password_signs_and_the_password_is_told_to_nobody(tmp_path: Path, key_pair: Any) -> None:
    pair = key_pair(tmp_path, password=b"open sesame")
    settings = dataclasses.replace(pair, password_env="SIGNING_PASSWORD")
    unsigned = sign(tmp_path, SigningSettings())
    with pytest.raises(InputError, match="private key") as caught:
        sign_version(unsigned.storage, unsigned.version, unsigned.copy, settings, {"SIGNING_PASSWORD": "sesame closed"})
    assert "sesame" not in str(caught.value)
    sign_version(unsigned.storage, unsigned.version, unsigned.copy, settings, {"SIGNING_PASSWORD": "open sesame"})
    assert verify_signature(unsigned.storage, unsigned.version, unsigned.copy, settings)


def test_sigstore_without_a_network_or_an_identity_says_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import signing

    def no_network(self: object, *_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(signing.Config, "sign", no_network)
    monkeypatch.setattr(signing.Config, "use_sigstore_signer", lambda self, **_: self)
    with pytest.raises(RunError, match="method 'key'"):
        sign(tmp_path, SigningSettings("sigstore", identity="ci@example.com", oidc_issuer="https://issuer.example.com"))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (SigningSettings("key", private_key="k"), "public_key"),
        (SigningSettings("key", public_key="k"), "private_key"),
        (SigningSettings("sigstore", identity="ci@example.com"), "oidc_issuer"),
        (SigningSettings(require_signature=True), "method"),
    ],
)
def test_settings_that_could_never_sign_or_verify_are_refused(settings: SigningSettings, missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        refuse_unusable_signing(settings, signs=True)
