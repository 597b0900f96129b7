"""How versions are signed and whose signature counts: settings of every step that publishes or promotes."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import setting


@dataclass(frozen=True)
class SigningSettings:
    """Signing with a key pair or with Sigstore. Secrets are named, never held."""

    method: str = setting("none", choices=("none", "key", "sigstore"), help="how a version is signed")
    private_key: str = setting("", help="key: file of the elliptic private key, PEM")
    password_env: str = setting("", help="key: environment variable that holds the private key's password")
    public_key: str = setting("", help="key: file of the public key that signatures are verified with, PEM")
    identity: str = setting("", help="sigstore: who must have signed, as the certificate names them")
    oidc_issuer: str = setting("", help="sigstore: who must have vouched for that identity")
    require_signature: bool = setting(False, help="whether only a signed version may be promoted")


def refuse_unusable_signing(settings: SigningSettings, *, signs: bool) -> None:
    """Refuses settings with which a signature could be asked for and never be made or verified.

    Args:
        settings: to check.
        signs: whether a signature is made, and not verified alone.

    Raises:
        SettingsError: naming what is missing.
    """
    wanted = {"key": ["public_key"], "sigstore": ["identity", "oidc_issuer"]}.get(settings.method, [])
    if settings.method == "key" and signs:
        wanted.append("private_key")
    missing = [name for name in wanted if not getattr(settings, name)]
    if settings.require_signature and settings.method == "none":
        missing.append("method")
    if missing:
        raise SettingsError(
            "recipe.signing is incomplete.",
            seen=f"method {settings.method!r} without {', '.join(missing)}",
            expected="what a version is signed with and what its signature is verified with",
            remedy=f"add {', '.join(missing)} to the section 'signing'"
            + ("" if signs else "; on the command line, name the key with --public-key"),
        )
