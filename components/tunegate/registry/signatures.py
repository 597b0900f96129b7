"""Signatures of versions, made and verified with sigstore's model-signing.

::

    signatures/<version>.json   a Sigstore bundle over every file of the version. It lies beside it: an elliptic
                                signature is another one each time, and would make the same parts another version

Its own command verifies a version that was copied out of the registry just as well:
``model_signing verify key FOLDER --signature BUNDLE --public_key KEY --no-ignore-git-paths``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError, ConflictError, InputError, RunError
from tunegate.contracts.manifest import Manifest
from tunegate.registry.lineage import with_lineage
from tunegate.registry.settings import SigningSettings
from tunegate.registry.versions import Part, fetch_version, publish
from tunegate.storage.interface import Storage

_FOLDER = "signatures"


def publish_signed(
    storage: Storage, parts: Mapping[str, Part], settings: SigningSettings, environment: Mapping[str, str]
) -> str:
    """Puts a version with its lineage into the registry, signed where the settings say so, and returns its digest.

    What is signed is what came back from the registry, every byte of it checked. Errors are those of
    :func:`~tunegate.registry.versions.publish` and :func:`sign_version`.
    """
    with with_lineage(parts) as whole:
        version = publish(storage, whole)
    if settings.method != "none":
        with tempfile.TemporaryDirectory(prefix="tunegate-version-") as scratch:
            folder = Path(scratch) / "version"
            fetch_version(storage, version, folder)
            sign_version(storage, version, folder, settings, environment)
    return version


def sign_version(
    storage: Storage, version: str, folder: Path, settings: SigningSettings, environment: Mapping[str, str]
) -> None:
    """Signs a version that was fetched into ``folder``; one that is signed already is verified and kept.

    Args:
        storage: the registry's storage.
        version: its digest.
        folder: what :func:`~tunegate.registry.versions.fetch_version` made, every byte of it checked.
        settings: with what. Nothing is done for the method ``none``.
        environment: where the key's password is found.

    Raises:
        InputError: when the key cannot be used.
        RunError: when Sigstore cannot be reached, or gives no certificate.
        ArtifactError: when the signature that is there is not of these bytes, or not by this key.
    """
    if settings.method == "none":
        return
    if read_signature(storage, version) is None:
        with tempfile.TemporaryDirectory(prefix="tunegate-signature-") as scratch:
            bundle = Path(scratch) / "bundle.json"
            _sign(folder, bundle, settings, environment)
            with contextlib.suppress(ConflictError):  # another try of the same work was faster: it is verified below
                storage.write(_key(version), bundle.read_bytes(), if_generation_match=0)
    verify_signature(storage, version, folder, settings)


def read_signature(storage: Storage, version: str) -> bytes | None:
    """A version's signature, None when it is not signed."""
    blob = storage.read(_key(version))
    return None if blob is None else blob.data


def verify_signature(storage: Storage, version: str, folder: Path, settings: SigningSettings) -> bool:
    """Holds a version's files against its signature.

    Args:
        folder: the version's files, fetched.
        settings: whose signature counts.

    Returns:
        False when it is not signed and need not be.

    Raises:
        ArtifactError: when it must be signed and is not, when it is signed and there is nothing to verify that with,
            when a file is not what was signed, or another key signed it.
    """
    signature = read_signature(storage, version)
    if signature is None:
        if settings.method != "none" or settings.require_signature:
            raise _refused(storage, version, "no signature", "sign it, or promote another version")
        return False
    if settings.method == "none":
        remedy = "name the signer: --public-key on the command line, the section 'signing' in a pipeline"
        raise _refused(storage, version, "a signature, and nothing to verify it with", remedy)
    with tempfile.TemporaryDirectory(prefix="tunegate-signature-") as scratch:
        bundle = Path(scratch) / "bundle.json"
        bundle.write_bytes(signature)
        _verify(storage, version, folder, bundle, settings)
    return True


def fetch_signed_version(storage: Storage, version: str, folder: Path, settings: SigningSettings) -> Manifest:
    """Copies a version into ``folder`` and checks every byte of it, and who signed it: for whoever serves it.

    Raises:
        ArtifactError: naming each file that is not the version's own, or why its signature does not count.
    """
    manifest = fetch_version(storage, version, folder)
    _refuse_empty_folders(folder)
    verify_signature(storage, version, folder, settings)
    return manifest


def _sign(folder: Path, bundle: Path, settings: SigningSettings, environment: Mapping[str, str]) -> None:
    from model_signing import signing

    config = signing.Config().set_hashing_config(_hashing())
    if settings.method == "key":
        try:
            password = environment.get(settings.password_env) if settings.password_env else None
            key: Any = password.encode() if password else None  # cryptography wants bytes, whatever the signature says
            config.use_elliptic_key_signer(private_key=settings.private_key, password=key)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"The private key {settings.private_key} cannot be used.",
                seen=f"{type(error).__name__}: {error}",
                expected="an elliptic private key in PEM (secp256r1, secp384r1 or secp521r1), and its password",
                remedy="check signing.private_key, and the variable that signing.password_env names",
            ) from error
        config.sign(folder, bundle)
        return
    try:
        config.use_sigstore_signer(use_ambient_credentials=True).sign(folder, bundle)
    except Exception as error:  # whatever of many libraries fails here is the network or the identity
        raise RunError(
            "Sigstore did not sign the version.",
            seen=f"{type(error).__name__}: {error}",
            expected="a network that reaches Sigstore, and an ambient OIDC identity",
            remedy="sign with a key pair where there is no network: signing.method 'key'",
        ) from error


def _verify(storage: Storage, version: str, folder: Path, bundle: Path, settings: SigningSettings) -> None:
    from model_signing import verifying

    config = verifying.Config().set_hashing_config(_hashing())
    try:
        if settings.method == "key":
            config.use_elliptic_key_verifier(public_key=settings.public_key)
        else:
            config.use_sigstore_verifier(identity=settings.identity, oidc_issuer=settings.oidc_issuer)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The public key {settings.public_key} cannot be used.",
            seen=f"{type(error).__name__}: {error}",
            expected="an elliptic public key in PEM",
            remedy="check signing.public_key",
        ) from error
    try:
        config.verify(folder, bundle)
    except Exception as error:  # the library raises ValueError, its own and those of three others
        seen = str(error) or type(error).__name__
        raise _refused(storage, version, seen, "do not use this version: it is not what was signed") from error


def _hashing() -> Any:
    """Every file counts, those named .git… as well: by default they are left out, on the side that looks too."""
    from model_signing import hashing

    return hashing.Config().use_file_serialization().set_ignored_paths(paths=[], ignore_git_paths=False)


def _refuse_empty_folders(folder: Path) -> None:
    """A signature says nothing of folders that hold no file."""
    empty = [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())
    ]
    if empty:
        raise ArtifactError(
            f"{folder} holds folders that are no part of the version.",
            seen=f"{len(empty)} empty folder(s)",
            expected="the version's files and no more",
            remedy="do not use this copy; fetch the version again",
            items=sorted(empty),
        )


def _key(version: str) -> str:
    return f"{_FOLDER}/{version}.json"


def _refused(storage: Storage, version: str, seen: str, remedy: str) -> ArtifactError:
    return ArtifactError(
        f"The signature of version {version} in {storage.uri} does not count.",
        seen=seen,
        expected="a signature of these very bytes by the signer that the settings name",
        remedy=remedy,
    )
