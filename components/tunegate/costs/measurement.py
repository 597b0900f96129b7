"""One measurement of a server as a document: the load, what it cost, and where it was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.contracts.files import canonical_json, read_json_object, write_atomically
from tunegate.contracts.settings import parse_settings, settings_document
from tunegate.costs.settings import Load

SCHEMA_VERSION = 1
KIND = "serving_costs"

#: What is measured of each request, as vLLM's load generator calls it → what that is.
METRICS = {
    "ttft": "time to first token",
    "tpot": "time per token after the first",
    "itl": "gap between two tokens",
    "e2el": "whole answer",
}
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Spread:
    """How a metric is spread over the requests, in milliseconds."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        at_seconds: when it was sent, after the first one.
        model: what was asked.
        first_token_ms: until its first token.
        gaps_ms: between its tokens, one behind the other.
        whole_ms: until its end.
        error: why it failed, empty for one that was answered.
    """

    at_seconds: float
    model: str
    first_token_ms: float
    gaps_ms: tuple[float, ...]
    whole_ms: float
    error: str


@dataclass(frozen=True)
class Model:
    """A model that was asked: its name, and the folder that the server says it was loaded from."""

    name: str
    root: str


@dataclass(frozen=True)
class Machine:
    """The machine that asked, which is the server's where the address is one of this machine.

    Attributes:
        processor: its CPU.
        cpus: how many of them this process may use.
        load_before: its load average of a minute before the first request; what else worked there shows in it.
        load_after: the same at the end.
    """

    processor: str
    cpus: int
    load_before: float
    load_after: float


@dataclass(frozen=True)
class Measurement:
    """What a server cost.

    Attributes:
        label: what it is called on a page.
        url: the server.
        models: what was asked, one after the other.
        load: the load.
        latency: metric of ``METRICS`` → its spread, in milliseconds.
        seconds: from the first request to the end of the last.
        completed: requests that were answered.
        failed: requests that were not.
        requests_per_second: answered.
        answer_tokens_per_second: generated, all requests together.
        memory_bytes: of the server's processes after the load, pages that they share with others in proportion (PSS);
            None where it was not measured. Memory of a GPU is not in it.
        machine: where the requests came from.
        measured_at: when, in UTC.
        generator: what made the load.
        asked: every request.
        marks: what happened meanwhile → when, in seconds after the first request.
    """

    label: str
    url: str
    models: tuple[Model, ...]
    load: Load
    latency: Mapping[str, Spread]
    seconds: float
    completed: int
    failed: int
    requests_per_second: float
    answer_tokens_per_second: float
    memory_bytes: int | None
    machine: Machine
    measured_at: str
    generator: str
    asked: tuple[Asked, ...]
    marks: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """All but the single requests, for a script."""
        document = self.to_json()
        del document["asked"]
        return document

    def to_json(self) -> dict[str, Any]:
        """The document."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {
            "models": [dataclasses.asdict(model) for model in self.models],
            "load": settings_document(self.load),
            "latency": {name: dataclasses.asdict(spread) for name, spread in self.latency.items()},
            "machine": dataclasses.asdict(self.machine),
            "asked": [dataclasses.asdict(one) | {"gaps_ms": list(one.gaps_ms)} for one in self.asked],
            "marks": dict(self.marks),
        }
        return {"kind": KIND, "schema_version": SCHEMA_VERSION, **fields}


def write_measurement(measurement: Measurement, path: Path) -> None:
    """Writes the document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, canonical_json(measurement.to_json()) + b"\n")


def read_measurement(path: Path) -> Measurement:
    """Reads what ``tunegate costs measure`` wrote.

    Raises:
        InputError: when it is something else, or of another version.
    """
    try:
        document = read_json_object(path)
        stated = (document.pop("kind"), document.pop("schema_version"))
        if stated != (KIND, SCHEMA_VERSION):
            raise ValueError(f"{stated[0]!r}, version {stated[1]!r}")
        return _parsed(document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no measurement of a server.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"a document of kind {KIND}, version {SCHEMA_VERSION}",
            remedy="give a file that `tunegate costs measure` of this version wrote",
        ) from error


def _parsed(document: dict[str, Any]) -> Measurement:
    latency = {name: Spread(**spread) for name, spread in document.pop("latency").items()}
    if latency.keys() != METRICS.keys():
        raise ValueError(f"latency of {', '.join(latency) or 'nothing'}")
    numbers = [value for spread in latency.values() for value in dataclasses.astuple(spread)]
    numbers += [document[name] for name in ("seconds", "requests_per_second", "answer_tokens_per_second")]
    if not all(isinstance(value, int | float) for value in numbers):
        raise TypeError(f"a number that is none: {json.dumps(numbers)}")
    return Measurement(
        models=tuple(Model(**model) for model in document.pop("models")),
        load=parse_settings(Load, document.pop("load"), where="load"),
        latency=latency,
        machine=Machine(**document.pop("machine")),
        asked=tuple(Asked(**{**one, "gaps_ms": tuple(one["gaps_ms"])}) for one in document.pop("asked")),
        **document,
    )
