"""Scoring probe rows: the figures are transformers' own, whatever the batch, and rows are the held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import DataError, RunError
from tunegate.models.likelihood import Scored, decoder_layers, score, token_kl
from tunegate.models.load import load_causal_lm, load_tokenizer
from tunegate.models.probe import Probe, ProbeRow, read_probe

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return load_causal_lm(tiny_base).eval()


@pytest.fixture(scope="module")
def rows() -> list[ProbeRow]:
    """Rows of different lengths, whose scored parts begin at different places."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in (9, 23, 14, 5)]
    return [
        ProbeRow(str(n), tuple(ids), start) for n, (ids, start) in enumerate(zip(drawn, (4, 20, 1, 2), strict=True))
    ]


@pytest.fixture(scope="module")
def together(model: Any, rows: list[ProbeRow]) -> list[Scored]:
    return list(score(model, rows, batch_size=4, with_layers=True))


def test_the_loss_of_a_padded_row_is_the_one_that_transformers_computes_of_it_alone(
    model: Any, together: list[Scored]
) -> None:
    for scored in together:
        ids = torch.tensor([scored.row.token_ids])
        labels = ids.clone()
        labels[:, : scored.row.start] = -100
        with torch.no_grad():
            expected = float(model(input_ids=ids, labels=labels).loss)
        assert float(scored.token_losses.mean()) == pytest.approx(expected, abs=1e-5)


def test_each_batching_gives_the_same_distributions_and_states_but_for_rounding(
    model: Any, rows: list[ProbeRow], together: list[Scored]
) -> None:
    for one, other in zip(together, score(model, rows, batch_size=1, with_layers=True), strict=True):
        assert one.row == other.row
        assert abs(one.log_probs - other.log_probs).max() < 1e-4
        assert abs(one.layers - other.layers).max() < 1e-4


def test_the_states_are_those_behind_each_layer_and_before_the_last_norm(model: Any, together: list[Scored]) -> None:
    scored = together[0]
    with torch.no_grad():
        states = model(torch.tensor([scored.row.token_ids]), output_hidden_states=True).hidden_states
        places = slice(scored.row.start - 1, len(scored.row.token_ids) - 1)
        assert abs(scored.layers[0] - states[1][0, places].numpy()).max() < 1e-5
        normed = model.model.norm(torch.tensor(scored.layers[-1]))
    assert abs(normed - states[-1][0, places]).max() < 1e-5
    assert list(decoder_layers(model)) == ["model.layers.0", "model.layers.1"]


def test_divergence_is_that_of_torch_in_double_precision(together: list[Scored]) -> None:
    p = torch.tensor(together[1].log_probs).double().log_softmax(-1)
    other = torch.roll(torch.tensor(together[1].log_probs), 1, dims=-1)
    q = other.double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    found = token_kl(together[1].log_probs, other.numpy())
    assert found == pytest.approx(expected.numpy(), rel=1e-9)
    assert token_kl(together[1].log_probs, together[1].log_probs) == pytest.approx(0, abs=1e-12)


def test_logits_that_are_no_number_are_never_a_score(tiny_base: Path, rows: list[ProbeRow]) -> None:
    broken = load_causal_lm(tiny_base).eval()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="no probabilities for row 0"):
        list(score(broken, rows, batch_size=2))


def read(dataset: Path, tokenizer: Any, **changed: int) -> Probe:
    return read_probe(dataset, tokenizer, **{"rows": 16, "max_length": 256, "max_scored_tokens": 64, **changed})


def test_probe_rows_are_the_validation_rows_and_their_answers_are_what_is_scored(
    tiny_dataset: Path, tiny_base: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    stored = [json.loads(line) for line in (tiny_dataset / "validation.jsonl").read_text("utf-8").splitlines()]
    answers = {row["id"]: row["completion"][-1]["content"] for row in stored}
    probe = read(tiny_dataset, tokenizer)
    assert [row.row_id for row in probe.rows] == sorted(answers)
    for row in probe.rows:
        assert tokenizer.decode(list(row.scored_ids)).startswith(answers[row.row_id])
    assert len(read(tiny_dataset, tokenizer, max_scored_tokens=3).rows[0].scored_ids) == 3


def test_a_row_whose_prompt_fills_the_length_is_passed_over_and_counted(tmp_path: Path, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    answer = [{"role": "assistant", "content": "Paris"}]
    prompts = {"a": "weather " * 40, "b": "weather", "c": "weather " * 30}
    rows = [{"id": i, "prompt": [{"role": "user", "content": p}], "completion": answer} for i, p in prompts.items()]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    starts = {row.row_id: row.start for row in read(tmp_path, tokenizer).rows}
    probe = read(tmp_path, tokenizer, max_length=starts["c"] + 1)
    assert [row.row_id for row in probe.rows] == ["b", "c"]
    assert probe.passed_over == 1
    assert len(probe.rows[1].scored_ids) == 1
    with pytest.raises(DataError, match="no row to compare"):
        read(tmp_path, tokenizer, max_length=starts["b"])


def test_of_a_text_everything_but_its_first_token_is_scored(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "validation.jsonl").write_text(json.dumps({"id": "a", "text": "weather of Paris"}) + "\n", "utf-8")
    tokenizer = load_tokenizer(tiny_base)
    (row,) = read(tmp_path, tokenizer).rows
    assert row.start == 1
    assert row.token_ids[-1] == tokenizer.eos_token_id
