"""Frozen dataclasses as settings: parsed strictly, with the nearest known name for a misspelt key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from tunegate.contracts.errors import SettingsError

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    choices: tuple[str, ...] = (),
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with what a person needs to know of it: unit, range, choices and help."""
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        metadata={
            "help": help, "unit": unit, "minimum": minimum, "maximum": maximum,
            "exclusive_minimum": exclusive_minimum, "choices": choices,
        },
    )  # fmt: skip


def parse_settings(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Builds ``cls`` from a mapping.

    Args:
        cls: a dataclass whose fields were made by :func:`setting`.
        values: the mapping; keys that are missing take their defaults.
        where: what the mapping is called in an error, for example ``recipe.train``.

    Raises:
        SettingsError: for an unknown key (naming the nearest), a missing one, a wrong type or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(
            f"{where} is not a mapping.",
            seen=type(values).__name__,
            expected="setting names with their values",
            remedy=f"write {where} as 'name: value' lines",
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    refuse_unknown_keys(values, known=fields, where=where)
    hints = typing.get_type_hints(cls)
    parsed = {name: _checked(value, hints[name], fields[name], f"{where}.{name}") for name, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in parsed and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(
            f"{where} is incomplete.",
            seen=f"no {', '.join(missing)}",
            expected="; ".join(f"{name}: {fields[name].metadata.get('help', '')}" for name in missing),
            remedy=f"add {', '.join(missing)} to {where}",
        )
    return cls(**parsed)


def refuse_unknown_keys(values: Mapping[str, Any], *, known: typing.Iterable[str], where: str) -> None:
    """Raises SettingsError for a key that is not known, naming the nearest known one."""
    names = sorted(known)
    for key in values:
        if key in names:
            continue
        near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
        raise SettingsError(
            f"{where} has an unknown key.",
            seen=repr(key),
            expected=f"one of {', '.join(names)}",
            remedy=f"did you mean {near[0]!r}?" if near else f"remove {key!r} from {where}",
        )


def _checked(value: Any, hint: Any, field: dataclasses.Field[Any], where: str) -> Any:
    value = _typed(value, hint, where)
    meta = field.metadata
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    low, high, above = meta.get("minimum"), meta.get("maximum"), meta.get("exclusive_minimum")
    bad = numbers and (
        value != value
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )
    if bad:
        bounds = [f"≥ {low}" if low is not None else "", f"> {above}" if above is not None else ""]
        bounds.append(f"≤ {high}" if high is not None else "")
        raise SettingsError(
            f"{where} is out of range.",
            seen=str(value),
            expected=" and ".join(b for b in bounds if b) + f" {meta.get('unit', '')}".rstrip(),
            remedy=f"{where}: {meta.get('help', '')}",
        )
    if meta.get("choices") and value not in meta["choices"]:
        near = difflib.get_close_matches(str(value), meta["choices"], n=1)
        raise SettingsError(
            f"{where} has an unknown value.",
            seen=repr(value),
            expected=f"one of {', '.join(meta['choices'])}",
            remedy=f"did you mean {near[0]!r}?" if near else f"{where}: {meta.get('help', '')}",
        )
    return value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` says; int passes for float, a list for a tuple, and nothing else is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _typed(value, inner[0], where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # KFP hands numbers of a dict parameter over as doubles
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise SettingsError(
        f"{where} has the wrong type.",
        seen=f"{value!r} ({type(value).__name__})",
        expected=name if origin is None else str(hint),
        remedy=f"write {where} as {name}" + (" (in YAML, 2e-4 needs a point: 2.0e-4)" if hint is float else ""),
    )


def settings_document(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain JSON types, for a manifest."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}
