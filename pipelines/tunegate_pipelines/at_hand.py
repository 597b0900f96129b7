"""What a lint can look into before a run: the base's config and a sample of the rows, where they lie at hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import DataError, ModelError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.schemes import AUTO_SCHEME
from tunegate.contracts.vllm import THIS_MACHINE
from tunegate.preflight.lint import Context, Sample, Sections
from tunegate.preflight.model_shape import model_shape
from tunegate.preflight.rule import Need
from tunegate.preflight.scheme_choice import choose_scheme, quantized_widths
from tunegate.preflight.serving_targets import find_target
from tunegate.prepare.formats import Example, convert, detect_format
from tunegate.prepare.read import RawRow
from tunegate_pipelines.demo.data import EVALUATION_FRACTION, right_rows, wrong_rows

#: How many rows are looked at.
SAMPLED_ROWS = 500

_DEMO = "demo"
_CONFIG = "config.json"


def context_at_hand(
    sections: Sections, *, base_model: str, dataset: str, own_tasks: Mapping[str, Sequence[str]] | None = None
) -> Context:
    """The lint's context; what cannot be read here is absent, with the reason, and is left to the steps to judge.

    Args:
        sections: step → its settings, complete.
        base_model: as in the run form: the config is read out of a local folder.
        dataset: as in the run form: rows are read out of a local ``.jsonl`` file, or are the demo's.
        own_tasks: name of a user's own task → what it measures of a row; None where there is none.
    """
    absent: dict[Need, str] = {}
    config: Mapping[str, Any] | None = None
    rows: Sample | None = None
    try:
        config = _config(base_model)
    except ValueError as error:
        absent["base_config"] = str(error)
    try:
        rows = _sample(dataset, stated=sections["prepare"]["format"])
    except ValueError as error:
        absent["rows"] = str(error)
    except DataError as error:
        absent["rows"] = error.failed
    return Context(_with_scheme(sections, config), config, rows, absent, own_tasks or {})


def _with_scheme(sections: Sections, config: Mapping[str, Any] | None) -> Sections:
    """The settings with the scheme that ``auto`` will take, so that the rules on it are checked as well."""
    quantize = sections["quantize"]
    if quantize["scheme"] != AUTO_SCHEME or quantize["serving_target"] == THIS_MACHINE:
        return sections
    try:
        widths = quantized_widths(model_shape(config), quantize["ignore"]) if config else {}
    except ModelError:  # its shapes are not known here; quantize reads them out of the model
        widths = {}
    picked = choose_scheme(find_target(quantize["serving_target"]), widths)
    return {**sections, "quantize": {**quantize, "scheme": picked.scheme}}


def _config(base_model: str) -> Mapping[str, Any]:
    if base_model == _DEMO:
        raise ValueError("the demo's base model is made when the run starts")
    path = Path(base_model).expanduser() / _CONFIG
    if not base_model or not path.is_file():
        raise ValueError(f"base_model {base_model!r} is no folder of this machine with a {_CONFIG}")
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _sample(dataset: str, *, stated: str) -> Sample:
    """Every row of a small file, some hundred from all over a large one.

    Raises:
        ValueError: for a data set that is read elsewhere.
        DataError: for rows without a format.
    """
    if dataset in (_DEMO, f"{_DEMO}-wrong"):
        rows = right_rows() if dataset == _DEMO else wrong_rows(EVALUATION_FRACTION)
        return _counted(rows, len(rows), dataset, stated)
    path = Path(dataset).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        raise ValueError(f"dataset {dataset!r} is no .jsonl file of this machine")
    with path.open("rb") as file:
        total = sum(1 for line in file if line.strip())
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        chosen = list(itertools.islice(lines, 0, None, -(-total // SAMPLED_ROWS) or 1))
    return _counted(_objects(chosen), total, path.name, stated)


def _objects(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The lines that are objects; prepare names those that are not."""
    found = []
    for line in lines:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _counted(rows: list[dict[str, Any]], total: int, name: str, stated: str) -> Sample:
    """A row becomes one row to train on for each answer in it; rows that prepare would refuse are passed over."""
    raw = [RawRow(name, f"{name}:{number}", row) for number, row in enumerate(rows, 1)]
    if not raw:
        raise ValueError(f"{name} holds no rows")
    format_name = detect_format(raw, stated=stated)
    completions: list[str] = []
    for row in raw:
        try:
            completions += _completions(convert(row, format_name))
        except DataError:
            continue
    return Sample(round(total * len(completions) / len(raw)), tuple(completions))


def _completions(example: Example) -> list[str]:
    if not example.messages:
        return [example.text]
    return [example.messages[index]["content"] for index in example.answers]
