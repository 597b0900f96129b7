"""parity: the adapter on the base of its training, the merged and the quantized model, on the same held-out tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import AdapterError
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import Manifest, input_digest, validation_rows_digest, verify
from tunegate.contracts.progress import Progress, say
from tunegate.contracts.settings import settings_document
from tunegate.models.files import check_model_folder, read_config
from tunegate.models.probe import Probe, ProbeRow, read_probe
from tunegate.models.training import FULL, TRAINING_NAME, read_training, refuse_other_base
from tunegate.parity.compare import Difference, compare
from tunegate.parity.page import parity_page
from tunegate.parity.report import NOISE, PAIRS, pair_name, parity_document, summary
from tunegate.parity.settings import ParitySettings
from tunegate.parity.tokens import write_tokens
from tunegate.parity.trace import record

KIND = "parity"
STEP = "parity"
PARITY_NAME = "parity.json"


def run(
    settings: ParitySettings,
    *,
    base_model: Path,
    adapter: Path,
    merged: Path,
    quantized: Path,
    dataset: Path,
    output: Path,
) -> Manifest:
    """Compares what was trained with what was made of it, and writes the ``parity`` artifact.

    Args:
        settings: on which rows, and how.
        base_model: the base that the adapter was trained on.
        adapter: what train wrote.
        merged: what merge wrote.
        quantized: what quantize wrote.
        dataset: what prepare wrote; only its validation rows are read.
        output: where the artifact will be.

    Raises:
        InputError: when an input cannot be used, before a model is loaded; or the base of the training cannot be held
            as it was.
        RunError: when a model gives values that are not finite.
    """
    for model in (base_model, merged, quantized):
        check_model_folder(model)
    parents = {
        "base": input_digest(base_model),
        "adapter": verify(adapter, kind="adapter").content_digest,
        "merged": verify(merged, kind="merged").content_digest,
        "quantized": verify(quantized, kind="quantized").content_digest,
        "validation_rows": validation_rows_digest(verify(dataset, kind="dataset")),
    }
    document = settings_document(settings)
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    training = _training(adapter, parents["base"])

    def build(folder: Path) -> None:
        models = {"base": base_model, "adapter": adapter, "merged": merged, "quantized": quantized}
        _build(folder, settings, models, training, dataset, parents)

    return produce(output, kind=KIND, parents=parents, settings=document, build=build)


def _training(adapter: Path, base_digest: str) -> dict[str, Any]:
    training = read_training(adapter)
    if training is None:
        raise AdapterError(
            f"{adapter} does not say how its base was held in training.",
            seen=f"no {TRAINING_NAME}",
            expected="what tunegate's train writes",
            remedy="train the adapter with tunegate",
        )
    refuse_other_base(adapter, training, base_digest)
    return training


def _build(
    folder: Path,
    settings: ParitySettings,
    models: Mapping[str, Path],
    training: Mapping[str, Any],
    dataset: Path,
    digests: Mapping[str, str],
) -> None:
    from tunegate.models.load import compute_dtype, device_type, load_tokenizer

    tokenizer = load_tokenizer(models["merged"])
    probe = read_probe(
        dataset,
        tokenizer,
        rows=settings.rows,
        max_length=min(settings.max_length, int(read_config(models["merged"]).get("max_position_embeddings", 1 << 30))),
        max_scored_tokens=settings.max_scored_tokens,
    )
    _tell_of_rows(probe, settings)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".traces-") as scratch:
        found, layers = _differences(Path(scratch), settings, models, training, probe.rows)
    texts = {
        token: tokenizer.decode([token])
        for difference in found.values()
        for worst in difference.worst_tokens(settings.worst_tokens)
        for token in (worst.expected, worst.reference_top, worst.candidate_top)
    }
    document = parity_document(
        found,
        digests=digests,
        probe=probe,
        layers=layers,
        texts=texts,
        dtype=str(compute_dtype(settings.dtype)).removeprefix("torch."),
        device=device_type(),
        worst_tokens=settings.worst_tokens,
    )
    write_tokens(found, folder)
    (folder / PARITY_NAME).write_bytes(pretty_json(document))
    (folder / "summary.json").write_bytes(pretty_json(summary(document)))
    (folder / "page.html").write_text(parity_page(document, found, trained=_trained(training)), "utf-8")
    _tell(document)


def _differences(
    scratch: Path,
    settings: ParitySettings,
    models: Mapping[str, Path],
    training: Mapping[str, Any],
    rows: tuple[ProbeRow, ...],
) -> tuple[dict[str, Difference], tuple[str, ...]]:
    """Every pair's difference with the noise floor, and the names of the layers. One model at a time is in memory."""
    from tunegate.models.load import load_causal_lm
    from tunegate.models.tuned import load_as_trained

    progress = Progress(STEP, 4 * len(rows), "rows asked")
    together = settings.batch_size
    say(STEP, f"asking {_trained(training)}")
    trained = partial(load_as_trained, models["base"], models["adapter"], training, dtype=settings.dtype)
    (adapter,) = record(trained, rows, [(scratch / "adapter", together)], progress)
    say(STEP, "asking the merged model, in batches and row by row")
    merged_model = partial(load_causal_lm, models["merged"], dtype=settings.dtype)
    merged_twice = record(
        merged_model, rows, [(scratch / "merged", together), (scratch / "merged-single", 1)], progress
    )
    say(STEP, "asking the quantized model")
    quantized_model = partial(load_causal_lm, models["quantized"], dtype=settings.dtype)
    (quantized,) = record(quantized_model, rows, [(scratch / "quantized", together)], progress)
    traces = {"adapter": adapter, "merged": merged_twice[0], "quantized": quantized}
    found = {pair_name(one, other): compare(traces[one], traces[other]) for one, other in PAIRS}
    return {**found, NOISE: compare(*merged_twice)}, merged_twice[0].layers


def _trained(training: Mapping[str, Any]) -> str:
    """What the adapter is compared as."""
    if training.get("method") == FULL:
        return "the tuned model itself"
    held = training["four_bit"]
    how = (
        "in 16 bits or more" if held is None else f"in {held['quant_type'].upper()}, computed in {held['weight_dtype']}"
    )
    return f"the adapter on its base {how}"


def _tell_of_rows(probe: Probe, settings: ParitySettings) -> None:
    fewer = f", fewer than parity.rows ({settings.rows})" if len(probe.rows) < settings.rows else ""
    passed = f"; {probe.passed_over} too long were passed over" if probe.passed_over else ""
    say(STEP, f"{len(probe.rows)} validation rows{fewer} with {probe.scored_tokens} tokens{passed}")


def _tell(document: Mapping[str, Any]) -> None:
    for name, pair in document["pairs"].items():
        worst = f", most in {pair['worst_layer']}" if pair["worst_layer"] else ""
        say(STEP, f"{name}: mean KL {pair['mean_kl']:.3g} nats, top-1 {pair['top1_agreement']:.1%}{worst}")
    say(STEP, f"noise floor: mean KL {document['noise_floor']['mean_kl']:.3g} nats")
