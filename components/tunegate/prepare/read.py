"""Rows out of a file, a folder of files or a hub, each with the place it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tunegate.contracts.errors import DataError
from tunegate.contracts.files import sha256_json
from tunegate.contracts.manifest import input_digest
from tunegate.models.files import HUB_NAME

SUFFIXES = (".jsonl", ".parquet")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class RawRow:
    """A row as it was given.

    Attributes:
        file: the file's path inside what was given, or the hub name: formats may not be mixed inside one.
        where: ``file:line``, or ``file:row`` for Parquet; counted from 1.
        values: the columns.
    """

    file: str
    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """All rows of a data set, in their order, and the digest of where they came from."""

    rows: list[RawRow]
    digest: str


def read_source(dataset: str, *, hub_config: str = "", hub_split: str = "train") -> Source:
    """Reads a data set.

    Args:
        dataset: a ``.jsonl`` or ``.parquet`` file, a folder of such files, or ``org/name@revision`` of a hub.
        hub_config: the hub data set's configuration.
        hub_split: the hub data set's split.

    Raises:
        DataError: naming the file and line that cannot be read, or saying that there are no rows.
    """
    path = Path(dataset).expanduser()
    if path.exists():
        rows = [row for file, name in _files(path) for row in _read_file(file, name)]
        source = Source(rows, input_digest(path)) if rows else Source([], "")
    elif HUB_NAME.match(dataset):
        rows = list(_read_hub(dataset, hub_config, hub_split))
        source = Source(rows, sha256_json([_plain(row.values) for row in rows]))
    else:
        raise DataError(
            f"The data set {dataset!r} was not found.",
            seen="no such file or folder, and no hub name with a revision",
            expected="a .jsonl or .parquet file, a folder of them, or 'org/name@revision'",
            remedy="check the path, or add '@' and the commit to the hub name, so that a rerun reads the same rows",
        )
    if not source.rows:
        raise DataError(
            f"The data set {dataset!r} is empty.",
            seen="no rows",
            expected="at least one row, in practice hundreds",
            remedy="check that the export that wrote it finished",
        )
    return source


def _files(path: Path) -> list[tuple[Path, str]]:
    if path.is_file():
        found = [(path, path.name)]
    else:
        inside = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        found = [(file, name.as_posix()) for file, name in inside if not any(p.startswith(".") for p in name.parts)]
        found = [(file, name) for file, name in found if file.suffix in SUFFIXES]
    if not found or any(file.suffix not in SUFFIXES for file, _ in found):
        kind = "csv" if path.suffix in (".csv", ".tsv") else "json"
        raise DataError(
            f"{path} cannot be read as a data set.",
            seen=f"a file ending in {path.suffix!r}" if path.is_file() else "a folder without .jsonl or .parquet files",
            expected="JSON Lines (.jsonl, one object a line) or Parquet (.parquet)",
            remedy=f"convert it: datasets.load_dataset('{kind}', data_files=...)['train'].to_json('rows.jsonl')",
        )
    return found


def _read_file(path: Path, name: str) -> Iterator[RawRow]:
    return _read_parquet(path, name) if path.suffix == ".parquet" else _read_json_lines(path, name)


def _read_json_lines(path: Path, name: str) -> Iterator[RawRow]:
    """The objects of a JSON Lines file; blank lines and a byte order mark are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                where = f"{name}:{number}"
                yield RawRow(name, where, _json_object(line, where))


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8.",
            seen=f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line",
            expected="a file in UTF-8",
            remedy="convert the file, for example: iconv -f LATIN1 -t UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON.",
            seen=f"{error}: {_shown(line)}",
            expected="one JSON object on each line",
            remedy="repair the line; a JSON array over many lines is not JSON Lines",
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where} is not a JSON object.",
            seen=f"{type(row).__name__}: {_shown(line)}",
            expected='one JSON object on each line, such as {"messages": [...]}',
            remedy="write each row as an object with its columns' names",
        )
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text[:_SHOWN_CHARACTERS] + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(name, f"{name}:{number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet.",
            seen=f"after {number} rows: {type(error).__name__}: {str(error)[:200]}",
            expected="a whole Parquet file whose text is UTF-8",
            remedy="copy or export the file again; it may have been cut off",
        ) from error


def _read_hub(dataset: str, config: str, split: str) -> Iterator[RawRow]:
    import datasets

    name, _, revision = dataset.partition("@")
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, config or None, revision=revision, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The data set {dataset!r} could not be loaded.",
            seen=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
            expected=f"a hub data set that this machine can reach, with a split {split!r}",
            remedy="check name, revision, hub_config and hub_split, or save it as Parquet and give the file",
        ) from error
    for number, values in enumerate(rows, 1):
        yield RawRow(name, f"{name}:{number}", dict(values))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
