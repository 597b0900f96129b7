"""The step: rows in, four files of rows and a profile out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import DataError
from tunegate.contracts.files import pretty_json, write_atomically
from tunegate.contracts.manifest import Manifest, input_digest
from tunegate.contracts.progress import say
from tunegate.contracts.settings import settings_document
from tunegate.models.companions import tokenizer_digests
from tunegate.models.endings import refuse_contradictions
from tunegate.models.load import load_tokenizer
from tunegate.models.row_content import content_digest
from tunegate.models.strata import stratified
from tunegate.prepare.check import check_rows
from tunegate.prepare.clean import clean
from tunegate.prepare.formats import detect_format
from tunegate.prepare.profile import Prepared, profile, reasons, row_count, summary
from tunegate.prepare.profile_page import profile_page
from tunegate.prepare.read import Source, read_source
from tunegate.prepare.rows import Candidate, lines
from tunegate.prepare.settings import PrepareSettings
from tunegate.prepare.split import SIDES, Side, rows_needed

KIND = "dataset"


def run(settings: PrepareSettings, *, dataset: str, base_model: Path, output: Path) -> Manifest:
    """Validates, cleans and divides a data set.

    Args:
        settings: see :class:`PrepareSettings`.
        dataset: a ``.jsonl`` or ``.parquet`` file, a folder of them, or ``org/name@revision`` of a hub.
        base_model: the model whose tokenizer and chat template the rows are rendered with.
        output: the artifact folder to write.

    Raises:
        DataError: rows that cannot be used, or a side without rows. Nothing is written then.
        ModelError: a tokenizer or chat template that cannot be used, or that ends a turn where the model does not stop.
        OutputExistsError: an ``output`` that was made from something else.
    """
    tokenizer = load_tokenizer(base_model)
    source = read_source(dataset, hub_config=settings.hub_config, hub_split=settings.hub_split)
    parents = {"dataset": source.digest, "base_model": input_digest(base_model)}
    document = settings_document(settings)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)

    def build(folder: Path) -> None:
        prepared = _prepare(source, tokenizer, base_model, settings)
        _write(folder, prepared, settings, tokenizer_digests(base_model))

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _prepare(source: Source, tokenizer: Any, base_model: Path, settings: PrepareSettings) -> Prepared:
    format_name = detect_format(source.rows, stated=settings.format)
    refuse_contradictions(base_model, tokenizer, conversations=format_name != "text")
    say("prepare", f"{len(source.rows)} rows of the format {format_name}")
    rows, invalid = check_rows(source.rows, format_name, tokenizer, settings)
    cleaned = clean(rows, settings)
    prepared = Prepared(
        format=format_name,
        read=len(source.rows),
        rows=cleaned.rows,
        dropped=[*invalid, *cleaned.dropped],
        found=cleaned.found,
        remaining=cleaned.remaining,
        calibration=_calibration(cleaned.rows, settings.num_calibration_samples),
    )
    _refuse_empty_sides(prepared, settings)
    return prepared


def _calibration(rows: Sequence[Candidate], count: int) -> list[dict[str, Any]]:
    """Training rows of every task, none of which says what a held-out row says (a first turn can, in two talks)."""
    documents = [(row.side, document) for row in rows for document in row.documents()]
    held = {content_digest(document) for side, document in documents if side != "train"}
    train = [document for side, document in documents if side == "train"]
    return [dict(row) for row in stratified([row for row in train if content_digest(row) not in held], count=count)]


def _refuse_empty_sides(prepared: Prepared, settings: PrepareSettings) -> None:
    share: dict[Side, float] = {
        "train": 1 - settings.validation_fraction - settings.evaluation_fraction,
        "validation": settings.validation_fraction,
        "evaluation": settings.evaluation_fraction,
    }
    empty = [side for side in SIDES if not prepared.of(side)]
    if not empty:
        return
    needed = max(rows_needed(share[side]) for side in empty)
    raise DataError(
        f"No row is left on the {' and the '.join(empty)} side.",
        seen=", ".join(f"{side} {row_count(prepared, side)}" for side in SIDES)
        + f" of {prepared.read} rows, {len(prepared.dropped)} left out",
        expected="rows on every side: " + ", ".join(f"{side} {share[side]:.0%}" for side in SIDES),
        remedy=f"give at least {needed} different rows, or change validation_fraction and evaluation_fraction"
        + ("; look at why rows were left out" if prepared.dropped else ""),
        items=[f"{count} left out: {reason}" for reason, count in reasons(prepared).items()],
    )


def _write(folder: Path, prepared: Prepared, settings: PrepareSettings, companions: Mapping[str, str]) -> None:
    for side in SIDES:
        documents = [document for row in prepared.of(side) for document in row.documents()]
        write_atomically(folder / f"{side}.jsonl", lines(documents))
    write_atomically(folder / "calibration.jsonl", lines(list(prepared.calibration)))
    write_atomically(folder / "profile.json", pretty_json(profile(prepared, settings, companions)))
    write_atomically(folder / "summary.json", pretty_json(dict(summary(prepared))))
    write_atomically(folder / "page.html", profile_page(prepared, settings).encode())
    counts = ", ".join(f"{row_count(prepared, side)} {side}" for side in SIDES)
    say("prepare", f"{counts} rows; {len(prepared.dropped)} left out")
    for reason, count in reasons(prepared).items():
        say("prepare", f"left out: {count} × {reason}")
