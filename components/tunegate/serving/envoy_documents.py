"""The documents that Envoy is told by: where it listens, the servers behind it, and which one a request goes to.

Envoy's own documents: "xDS configuration API overview" (filesystem subscriptions), "HTTP route components", "Lua".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BACKENDS, ROUTES, ADMIN = "backends.json", "routes.json", "admin.sock"
_TYPE = "type.googleapis.com/envoy"
_LUA = "envoy.filters.http.lua"
_ROUTE = "route"

#: How long a connection to a server is kept without a request. uvicorn closes one after 5 s, and a request that is sent
#: at that moment would be lost.
_IDLE_SECONDS = 2

#: What is tried again by itself: only what has certainly not reached a server, since an answer is not asked for twice.
_TRIED_AGAIN = "connect-failure,refused-stream,reset-before-request"

#: The longest request whose model is given another name: such a request is held until it is whole.
_NAMED_REQUEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Backend:
    """A server behind the address.

    Attributes:
        name: what tells it from every other one that was ever behind this address: lower-case letters, digits, '-'.
        url: ``http://host:port``, an IP address.
    """

    name: str
    url: str


def bootstrap(folder: Path, host: str, port: int) -> dict[str, Any]:
    """What Envoy starts with: all else is read from files in ``folder``, again whenever one is replaced."""
    http_options = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "address",
        "stream_idle_timeout": "0s",  # an answer may take long to begin, and a stream may pause
        "request_timeout": "0s",
        # What Envoy itself says when a server is gone tells clients when to ask again, as a route to nobody does.
        "local_reply_config": {
            "mappers": [
                {
                    "filter": {
                        "status_code_filter": {
                            "comparison": {"op": "EQ", "value": {"default_value": 503, "runtime_key": "address.503"}}
                        }
                    },
                    "headers_to_add": _headers(**{"retry-after": "5"})[1:],
                }
            ]
        },
        "rds": {"route_config_name": _ROUTE, "config_source": _from(folder, ROUTES)},
        "http_filters": [
            {"name": _LUA, "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.lua.v3.Lua"}},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    listener = {
        "name": "clients",
        "address": {"socket_address": {"address": host, "port_value": port}},
        "enable_reuse_port": False,  # two who listen on one port would share its clients without a word
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http_options}]}
        ],
    }
    return {
        "node": {"id": "tunegate", "cluster": "tunegate"},
        "admin": {"address": {"pipe": {"path": str(folder / ADMIN), "mode": 0o600}}},
        "dynamic_resources": {"cds_config": _from(folder, BACKENDS)},
        "static_resources": {"listeners": [listener]},
    }


def _from(folder: Path, name: str) -> dict[str, Any]:
    watched = {"path": str(folder / name), "watched_directory": {"path": str(folder)}}
    return {"resource_api_version": "V3", "path_config_source": watched}


def backends(known: Sequence[Backend], *, version: int) -> dict[str, Any]:
    """The servers that are behind the address."""
    return {"version_info": str(version), "resources": [_cluster(backend) for backend in known]}


def _cluster(backend: Backend) -> dict[str, Any]:
    parts = urlsplit(backend.url)
    endpoint = {"address": {"socket_address": {"address": parts.hostname, "port_value": parts.port}}}
    http_options = {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"idle_timeout": f"{_IDLE_SECONDS}s"},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    many = {"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536, "max_retries": 65536}
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": backend.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},  # vLLM queues by itself
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http_options},
        "load_assignment": {
            "cluster_name": backend.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


def routes(to: Backend | None, names: Mapping[str, str], *, version: int) -> dict[str, Any]:
    """Where a request goes that begins now.

    Args:
        to: the server; None: nowhere, and clients are told when to ask again.
        names: what clients call a model → what ``to`` calls it; models that are asked by another name are passed on.
        version: tells this document from the one before.
    """
    found = [_listing(names)] if names else []
    route = {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": _ROUTE,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [*found, _everything(to, names)]}],
    }
    return {"version_info": str(version), "resources": [route]}


def _everything(to: Backend | None, names: Mapping[str, str]) -> dict[str, Any]:
    match = {"prefix": "/"}
    if to is None:
        said = {"error": {"message": "nothing is served here yet: try again later", "type": "unavailable", "code": 503}}
        return {"match": match, **_said(503, said), "response_headers_to_add": _headers(**{"retry-after": "5"})}
    retry = {"retry_on": _TRIED_AGAIN, "num_retries": 3}
    found: dict[str, Any] = {
        "match": match,
        "route": {"cluster": to.name, "timeout": "0s", "idle_timeout": "0s", "retry_policy": retry},
    }
    if names:
        code = {"@type": f"{_TYPE}.extensions.filters.http.lua.v3.LuaPerRoute"}
        source = Path(__file__).with_name("model_names.lua").read_text("utf-8")
        found["typed_per_filter_config"] = {_LUA: {**code, "source_code": {"inline_string": _table(names) + source}}}
        found["request_body_buffer_limit"] = str(_NAMED_REQUEST_BYTES)
    return found


def _table(names: Mapping[str, str]) -> str:
    """The names as a table of Lua; both are of characters that need no escape there or in JSON."""
    return "local NAMES = {\n" + "".join(f'  ["{name}"] = "{served}",\n' for name, served in names.items()) + "}\n"


def _listing(names: Mapping[str, str]) -> dict[str, Any]:
    """The models by the names that clients call them; ``root`` is the one that answers carry."""
    cards = [{"id": name, "object": "model", "owned_by": "tunegate", "root": names[name]} for name in sorted(names)]
    match = {"path": "/v1/models", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}
    return {"match": match, **_said(200, {"object": "list", "data": cards}), "response_headers_to_add": _headers()}


def _said(status: int, document: Mapping[str, Any]) -> dict[str, Any]:
    return {"direct_response": {"status": status, "body": {"inline_string": json.dumps(document)}}}


def _headers(**more: str) -> list[dict[str, Any]]:
    return [
        {"header": {"key": key, "value": value}} for key, value in {"content-type": "application/json", **more}.items()
    ]
