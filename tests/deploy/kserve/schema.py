"""Holds a document against a structural schema of Kubernetes, strictly: what the schema does not name is refused.

``inferenceservice.json.gz`` is the schema of KServe's own InferenceService (v1beta1), as its CRD has it; its ``source``
says which commit (Apache-2.0). CEL rules are not checked.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip
_OF_EVERY_OBJECT = {"apiVersion", "kind", "metadata"}


@functools.cache
def inference_service() -> dict[str, Any]:
    """The schema of an InferenceService."""
    packed = Path(__file__).with_name("inferenceservice.json.gz").read_bytes()
    return dict(json.loads(gzip.decompress(packed))["schema"])


def wrong(document: Any, schema: dict[str, Any], at: str = "", *, root: bool = True) -> Iterator[str]:
    """Everything in ``document`` that ``schema`` does not allow."""
    if document is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(document, int | str) or isinstance(document, bool):
            yield f"{at}: {document!r} is neither number nor text"
        return
    kind = schema.get("type")
    if kind and (not isinstance(document, _KINDS[kind]) or (isinstance(document, bool) and kind != "boolean")):
        yield f"{at}: {type(document).__name__}, not {kind}"
        return
    if "enum" in schema and document not in schema["enum"]:
        yield f"{at}: {document!r} is none of {schema['enum']}"
    for name, broken in (("minimum", lambda low: document < low), ("maximum", lambda high: document > high)):
        if name in schema and broken(schema[name]):
            yield f"{at}: {document} breaks {name} {schema[name]}"
    if isinstance(document, list) and "items" in schema:
        for place, item in enumerate(document):
            yield from wrong(item, schema["items"], f"{at}[{place}]", root=False)
    if isinstance(document, dict):
        yield from _wrong_fields(document, schema, at, root=root)


def _wrong_fields(document: dict[str, Any], schema: dict[str, Any], at: str, *, root: bool) -> Iterator[str]:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in document:
            yield f"{at}.{name}: missing"
    for name, value in document.items():
        if root and name in _OF_EVERY_OBJECT:
            continue
        if name in known:
            yield from wrong(value, known[name], f"{at}.{name}", root=False)
        elif isinstance(rest, dict):
            yield from wrong(value, rest, f"{at}.{name}", root=False)
        elif not rest and not schema.get("x-kubernetes-preserve-unknown-fields") and (known or not root):
            yield f"{at}.{name}: unknown field"
