"""Tuned weights are written in the base's layout, whatever their sizes and dtypes, and every change is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunegate.contracts.errors import RunError
from tunegate.contracts.files import sha256_file
from tunegate.contracts.progress import ByteProgress
from tunegate.tensors import tuned
from tunegate.tensors.shards import model_specs

torch = pytest.importorskip("torch")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base with every kind of tensor, what it became under other names and in float32, and where to write."""
    from safetensors.torch import save_file

    base, trained, output = (tmp_path / name for name in ("base", "trained", "output"))
    for folder in (base, trained, output):
        folder.mkdir()
    torch.manual_seed(0)
    weights = {
        "wide": torch.randn(40, 30).to(torch.bfloat16),
        "half": torch.randn(7).to(torch.float16),
        "scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor([3, 4]),
        "kept": torch.randn(5, 5),
    }
    save_file(weights, base / "model.safetensors")
    after = {
        "a": weights["wide"].float() + 0.5,
        "b": weights["half"].float(),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 4),
        "e": torch.tensor([3, 5]),
    }
    save_file(after, trained / "other.safetensors")
    return base, trained, output


NAMES = {"wide": "a", "half": "b", "scale": "c", "empty": "d", "count": "e"}


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
def test_every_tensor_gets_its_own_dtype_back_and_what_is_not_named_keeps_its_bytes(
    folders: tuple[Path, Path, Path], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(tuned, "BLOCK_BYTES", block_bytes)
    said: list[int] = []
    monkeypatch.setattr(ByteProgress, "advance", lambda _, count: said.append(count))
    base, trained, output = folders
    sources = {name: (trained / "other.safetensors", other) for name, other in NAMES.items()}
    found, files = tuned.write_tuned(base, sources, output, dtype="auto", step="test")
    changes = {change.weight: change for change in found}
    assert [entry.sha256 for entry in files] == [sha256_file(output / entry.path) for entry in files]
    assert model_specs(output) == model_specs(base)
    assert sum(said) == sum(spec.size_bytes for spec in model_specs(output).values())
    before, after = (load_file(folder / "model.safetensors") for folder in (base, output))
    assert torch.equal(after["wide"], (before["wide"].float() + 0.5).to(torch.bfloat16))
    assert (float(after["scale"]), after["count"].tolist()) == (2.5, [3, 5])
    assert torch.equal(after["kept"], before["kept"]) and torch.equal(after["half"], before["half"])
    assert changes.keys() == {"wide", "half", "scale", "empty"}  # counts are no weights
    assert (changes["half"].changed, changes["half"].relative_change) == (0, 0)
    assert changes["wide"].changed == int((after["wide"] != before["wide"]).sum()) > 1000
    shift = 0.5 * 1200**0.5 / float(before["wide"].double().norm())
    assert changes["wide"].relative_change == pytest.approx(shift, rel=1e-6)
    assert (changes["scale"].changed, changes["scale"].relative_change) == (1, 0.25)


def test_a_weight_that_does_not_fit_the_dtype_is_an_error_and_not_an_infinity(
    folders: tuple[Path, Path, Path],
) -> None:
    from safetensors.torch import save_file

    base, trained, output = folders
    save_file({"b": torch.full((7,), 1e6)}, trained / "other.safetensors")
    with pytest.raises(RunError, match="half is not finite"):
        tuned.write_tuned(base, {"half": (trained / "other.safetensors", "b")}, output, dtype="auto", step="test")
