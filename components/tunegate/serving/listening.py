"""Where a server of this machine listens, and how it is asked there."""

from __future__ import annotations

import socket

from tunegate.contracts.errors import SettingsError

#: Listening here is listening everywhere, and nobody can be asked at such an address.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def listening_port(who: str, host: str, port: int) -> int:
    """The port, or a free one for 0.

    Args:
        who: what wants to listen, for the error.
        host: where it would listen.
        port: where it would listen.

    Raises:
        SettingsError: when the host cannot be listened on, or another process listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed port is free
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise SettingsError(
            f"{who} cannot listen on {host}, port {port}.",
            seen=str(error),
            expected="an address of this machine on which nothing listens",
            remedy="stop what listens there, or use port 0: one that is free",
        ) from error


def listening_ip(who: str, host: str) -> str:
    """The IP address of a host's name, for what knows no names; an address is its own.

    Raises:
        SettingsError: when the name has none.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise SettingsError(
            f"{who} cannot listen on {host}.",
            seen=str(error),
            expected="an address of this machine, or a name of it",
            remedy="use 127.0.0.1 for this machine alone, 0.0.0.0 for every network",
        ) from error


def listening_url(host: str, port: int) -> str:
    """``http://host:port`` at which what listens there can be asked."""
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
