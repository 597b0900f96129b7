"""``merge_base: measure``: both merges are made and scored on held-out rows of the train side; the better one is kept.

The losses decide. How far each merge is from the adapter on its NF4 base is reported and decides nothing: that would
always favour ``dequantized``, which is the same model but for rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.contracts.manifest import MANIFEST_NAME, read_manifest, validation_rows_digest, verify
from tunegate.contracts.progress import Progress, say
from tunegate.merge.base_choice import CONFIDENCE, BaseChoice, choose_base
from tunegate.merge.companions import copy_companions
from tunegate.merge.settings import DEQUANTIZED, MEASURE, ORIGINAL, MergeSettings
from tunegate.merge.weights import Merged, merge_shards
from tunegate.models.likelihood import Scored, score, token_kl
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.models.probe import Probe, read_probe
from tunegate.models.training import read_training
from tunegate.models.tuned import load_as_trained
from tunegate.tensors.adapter import Changes

STEP = "merge"

#: Rows that are scored together.
BATCH_ROWS = 4


@dataclass(frozen=True)
class HeldOut:
    """The rows that both merges are scored on.

    Attributes:
        dataset: the data set that the adapter was trained on.
        digest: of its validation rows.
        training: the adapter's ``training.json``.
    """

    dataset: Path
    digest: str
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """A merge that was chosen by measurement: what was merged, and what ``merge.json`` says of it."""

    base: str
    merged: Merged
    document: dict[str, Any]


def held_out_rows(settings: MergeSettings, adapter: Path, dataset: Path | None) -> HeldOut | None:
    """The rows to measure on; None when nothing is to be measured: it was not asked for, or both bases are one.

    Raises:
        SettingsError: when there is no data set.
        AdapterError: when the adapter was trained on another one: its rows may have been trained on.
    """
    if settings.merge_base != MEASURE:
        return None
    training = read_training(adapter)
    if training is None or training["four_bit"] is None:
        return None
    if dataset is None:
        raise SettingsError(
            "merge_base: measure needs the data set.",
            seen="no data set",
            expected="the one that the adapter was trained on, for its validation rows",
            remedy="give it to merge, or set merge_base: dequantized or original",
        )
    manifest = verify(dataset, kind="dataset")
    trained_on = read_manifest(adapter).parents if (adapter / MANIFEST_NAME).is_file() else {}
    if manifest.content_digest not in trained_on.values():
        raise AdapterError(
            f"The rows of {dataset} cannot judge this adapter: it may have been trained on them.",
            seen=f"data set {manifest.content_digest[:12]}, adapter of {trained_on.get('dataset', 'unknown')[:12]}",
            expected="the data set that the adapter's manifest names, whose validation rows it did not see",
            remedy="give that data set, or set merge_base: dequantized or original",
        )
    return HeldOut(dataset, validation_rows_digest(manifest), training)


def merge_measured(
    folder: Path,
    settings: MergeSettings,
    *,
    base: Path,
    adapter: Path,
    changes: Changes,
    held_out: HeldOut,
) -> Measured:
    """Makes both merges below ``folder``, scores them, and moves the weights of the better one into it.

    One model is in memory at a time. What is not kept lies in a folder inside ``folder`` and goes with it.

    Args:
        folder: where the merged shards are written, with their index.
        settings: dtype, rows and tokens.
        base: the original 16-bit model.
        adapter: a QLoRA adapter.
        changes: what the adapter changes.
        held_out: the rows.
    """
    bases: Mapping[str, Mapping[str, Any] | None] = {DEQUANTIZED: held_out.training["four_bit"], ORIGINAL: None}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".measure-") as name:
        scratch = Path(name)
        merged = {}
        for kind, four_bit in bases.items():
            say(STEP, f"measuring: a merge into the {kind} base")
            (scratch / kind).mkdir()
            merged[kind] = merge_shards(base, adapter, scratch / kind, changes, four_bit, settings.dtype)
            copy_companions(base, adapter, scratch / kind, dtype=settings.dtype, untied=bool(changes.untied))
        probe = _probe(settings, scratch / DEQUANTIZED, held_out)
        losses, divergences = _scores(scratch, list(bases), probe, base, adapter, held_out.training)
        choice = choose_base(losses[DEQUANTIZED], losses[ORIGINAL])
        say(STEP, _told(choice, probe))
        for file in (scratch / choice.chosen).glob("*.safetensors*"):
            file.rename(folder / file.name)
    return Measured(choice.chosen, merged[choice.chosen], _document(choice, probe, losses, divergences, held_out))


def _probe(settings: MergeSettings, model: Path, held_out: HeldOut) -> Probe:
    """Validation rows as training cut them."""
    return read_probe(
        held_out.dataset,
        load_tokenizer(model),
        rows=settings.measured_rows,
        max_length=int(held_out.training["settings"]["max_length"]),
        max_scored_tokens=settings.measured_tokens,
    )


def _scores(
    scratch: Path, kinds: Sequence[str], probe: Probe, base: Path, adapter: Path, training: Mapping[str, Any]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Each merge's loss of each row in nats a token, and its mean divergence from the adapter on the NF4 base."""
    import numpy as np

    progress = Progress(STEP, len(probe.rows) * (1 + len(kinds)), "rows scored")
    for place, scored in enumerate(_rows(lambda: load_as_trained(base, adapter, training), probe, progress)):
        np.save(scratch / f"{place}.npy", scored.log_probs)
    losses: dict[str, list[float]] = {kind: [] for kind in kinds}
    divergences: dict[str, float] = {}
    for kind in kinds:
        tokens = []
        for place, scored in enumerate(_rows(partial(load_causal_lm, scratch / kind), probe, progress)):
            losses[kind].append(float(scored.token_losses.mean()))
            tokens.append(token_kl(np.load(scratch / f"{place}.npy", allow_pickle=False), scored.log_probs))
        divergences[kind] = float(np.concatenate(tokens).mean())
    return losses, divergences


def _rows(load: Callable[[], Any], probe: Probe, progress: Progress) -> Iterator[Scored]:
    """Loads a model, hands on what it says of each row, and lets go of it."""
    from tunegate.models.quiet import quiet

    with quiet("transformers"):
        model = load()
    for scored in score(model.eval(), probe.rows, batch_size=BATCH_ROWS):
        progress.advance()
        yield scored


def _told(choice: BaseChoice, probe: Probe) -> str:
    bound = (
        "one row shows nothing" if choice.lower is None else f"with {CONFIDENCE:.0%} confidence ≥ {choice.lower:+.3g}"
    )
    return (
        f"measured on {len(probe.rows)} rows: original is better by {choice.difference:+.3g} nats a token, {bound}: "
        f"{choice.chosen}"
    )


def _document(
    choice: BaseChoice,
    probe: Probe,
    losses: Mapping[str, Sequence[float]],
    divergences: Mapping[str, float],
    held_out: HeldOut,
) -> dict[str, Any]:
    return {
        **asdict(choice),
        "confidence": CONFIDENCE,
        "bound": "one-sided, Student's paired t over rows",
        "loss": {kind: sum(values) / len(values) for kind, values in losses.items()},
        "mean_kl_from_adapter": dict(divergences),
        "rows": len(probe.rows),
        "rows_digest": probe.digest,
        "rows_passed_over": probe.passed_over,
        "scored_tokens": probe.scored_tokens,
        "validation_rows_digest": held_out.digest,
        "row_losses": [
            {"row_id": row.row_id, **{kind: values[place] for kind, values in losses.items()}}
            for place, row in enumerate(probe.rows)
        ],
    }
