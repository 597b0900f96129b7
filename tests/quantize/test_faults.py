"""A disk that is full while a quantized model is written: an error that says so, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import FullDevice

from tunegate.contracts.errors import RunError
from tunegate.contracts.manifest import verify
from tunegate.contracts.room import why_no_room
from tunegate.quantize.legacy import worker
from tunegate.quantize.legacy.job import Job
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run

pytest.importorskip("torch")

SETTINGS = QuantizeSettings(scheme="FP8_DYNAMIC")


def test_a_file_that_may_not_grow_is_no_room_though_safetensors_names_no_errno(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path, small_disk: None
) -> None:
    with pytest.raises(RunError, match="There is no room for") as caught:
        run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "File too large" in caught.value.seen and "make room" in caught.value.remedy
    assert not list(tmp_path.glob("out*"))


def test_a_full_device_says_so_and_the_same_command_succeeds_after_room_was_made(
    tiny_base: Path, tiny_dataset: Path, full_device: FullDevice
) -> None:
    output = full_device.folder / "out"
    with pytest.raises(RunError, match="There is no room for") as caught:
        run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=output)
    assert "No space left" in caught.value.seen
    assert not list(full_device.folder.iterdir())
    full_device.make_room()
    run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=output)
    verify(output, kind="quantized")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Exception("I/O error: File too large (os error 27)"), "File too large"),
        (Exception("I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (Exception('IoError(Os { code: 28, kind: StorageFull, message: "No space" })'), "No space left on device"),
        (OSError(28, "x"), "No space left on device"),
        (Exception("I/O error: No such file or directory (os error 2)"), ""),
        (OSError(2, "x (os error 28)"), ""),
        (RunError("(os error 28)", seen="", expected="", remedy=""), ""),
        (KeyboardInterrupt("(os error 28)"), ""),
    ],
)
def test_only_an_error_of_a_device_that_holds_no_more_is_no_room(error: BaseException, why: str) -> None:
    assert why_no_room(error) == why


def test_the_worker_of_the_other_environment_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_disk: None
) -> None:
    """Its last lines of a traceback would not do: the worker writes with the same safetensors."""
    import torch
    from safetensors.torch import save_file

    def save(job: Job) -> None:
        save_file({"weight": torch.zeros(100_000)}, Path(job.folder) / "model.safetensors")

    monkeypatch.setitem(worker.WORKERS, "autoawq", save)
    Job("autoawq", "in", str(tmp_path), ("a.b",), 64, ((1, 2),), 0.01, 7).write(tmp_path / "job.json")
    with pytest.raises(SystemExit):
        worker.main(tmp_path / "job.json")
    said = capsys.readouterr().err
    assert f"There is no room for {tmp_path}" in said and "File too large" in said
