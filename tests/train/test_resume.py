"""A run that is interrupted or killed must go on where it was, and end as if nothing had happened."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import Interrupted, RunError
from tunegate.storage.open import open_storage
from tunegate.train.checkpoints import MANIFEST_NAME, Checkpoints, open_checkpoints
from tunegate.train.settings import METHODS

pytest.importorskip("torch")


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(
    method: str, attempts: Any, whole: Any, tmp_path: Path
) -> None:
    rng = random.Random(method)
    work = attempts(method, "torn", checkpoint_uri=str(tmp_path / "checkpoints"))
    work.attempt(number=signal.SIGTERM, after_step=rng.randint(1, 3))
    work.attempt(number=signal.SIGKILL, after_step=rng.randint(5, 7))
    work.attempt()
    assert work.codes == [Interrupted.exit_code, -signal.SIGKILL, 0], work.said
    assert work.digest == whole(method).digest
    assert work.said.count("going on after step") == 2
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))  # they have done their duty


def _stopped_in_the_validation_of(step: int) -> Callable[[], None]:
    """Sends the process SIGTERM in the midst of the validation after ``step``."""

    def inside() -> None:
        from tunegate.train.interruption import CheckpointKeeper

        answer = CheckpointKeeper.on_prediction_step

        def on_prediction_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            answer(self, args, state, control, **kwargs)

        CheckpointKeeper.on_prediction_step = on_prediction_step  # type: ignore[method-assign]

    return inside


def test_a_validation_does_not_hold_up_a_stop_and_is_made_up_for(attempts: Any, whole: Any, tmp_path: Path) -> None:
    """A pod has seconds to end; a validation takes minutes. Step 4 is in the run, 6 ends an epoch, 12 the run."""
    work = attempts("lora", "torn", checkpoint_uri=str(tmp_path / "checkpoints"))
    for step in (0, 4, 6, 12):
        work.attempt(inside=_stopped_in_the_validation_of(step))
    assert work.codes == [75] * 4, work.said
    work.attempt()
    assert work.codes[-1] == 0, work.said
    assert [line for line in work.said.splitlines() if "going on after" in line] == [
        f"[train] going on after step {step}" for step in (4, 6, 12)
    ]
    assert work.digest == whole("lora").digest


def test_the_last_checkpoint_stays_while_the_artifact_must_still_be_carried_elsewhere(
    attempts: Any, whole: Any, tmp_path: Path
) -> None:
    """KFP uploads it after the step: a pod that is taken away meanwhile starts over from there."""
    work = attempts("lora", "carried", checkpoint_uri=str(tmp_path / "checkpoints"))
    work.arguments["keep_last"] = True
    work.attempt()
    assert len(folders(tmp_path / "checkpoints")) == 1
    shutil.rmtree(work.arguments["output"])
    work.attempt()
    assert "going on after step 11" in work.said
    assert work.digest == whole("lora").digest


def test_another_machine_goes_on_from_a_bucket(attempts: Any, whole: Any, gcs_bucket: str) -> None:
    work = attempts("adalora", "torn", checkpoint_uri=f"{gcs_bucket}/checkpoints")
    work.attempt(number=signal.SIGTERM, after_step=3)
    work.attempt(number=signal.SIGKILL, after_step=8)
    assert work.codes == [75, -signal.SIGKILL], work.said
    work.attempt()
    assert work.said.count("going on after step") == 2
    assert work.digest == whole("adalora").digest
    assert open_storage(gcs_bucket).list("checkpoints") == []


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/work").write_text("a file where a folder should be")
    with pytest.raises(RunError, match="could not be written"):
        open_checkpoints(str(tmp_path / "checkpoints"), "work")


def test_a_kill_between_two_checkpoints_loses_what_came_after_the_last(
    attempts: Any, whole: Any, tmp_path: Path
) -> None:
    work = attempts("lora", "killed", checkpoint_uri=str(tmp_path / "checkpoints"))
    work.attempt(number=signal.SIGKILL, after_step=3)
    assert work.codes == [-signal.SIGKILL]
    assert not work.arguments["output"].exists()
    work.attempt()
    assert "going on after step" in work.said
    assert work.digest == whole("lora").digest


@pytest.fixture
def kept(attempts: Any, tmp_path: Path) -> Any:
    """A LoRA run, interrupted after it kept some checkpoints."""
    work = attempts("lora", "kept", checkpoint_uri=str(tmp_path / "checkpoints"))
    work.attempt(number=signal.SIGTERM, after_step=4)
    assert work.codes == [Interrupted.exit_code], work.said
    return work


def folders(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob(f"*/step-*/{MANIFEST_NAME}"))


def test_two_checkpoints_are_kept_and_nothing_in_them_is_a_pickle_of_ours(kept: Any, tmp_path: Path) -> None:
    found = folders(tmp_path / "checkpoints")
    assert len(found) == 2
    names = {path.name for path in found[-1].iterdir()}
    assert "trainable.safetensors" in names
    assert not names & {"training_args.bin", "README.md", "adapter_model.bin"}


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.pt", "trainer_state.json", MANIFEST_NAME])
def test_one_changed_byte_is_never_loaded_and_the_checkpoint_before_it_is(name: str, kept: Any, tmp_path: Path) -> None:
    before, last = folders(tmp_path / "checkpoints")
    data = bytearray((last / name).read_bytes())
    data[len(data) // 2] ^= 1
    (last / name).write_bytes(bytes(data))
    work = last.parent.name
    checkpoints = open_checkpoints(str(tmp_path / "checkpoints"), work)
    assert checkpoints is not None
    found = checkpoints.fetch_last(tmp_path / "scratch")
    assert found is not None
    assert int(found.name.removeprefix("checkpoint-")) == int(before.name.removeprefix("step-"))
    assert not last.exists()


def test_a_checkpoint_whose_upload_never_finished_is_not_one(kept: Any, tmp_path: Path) -> None:
    before, last = folders(tmp_path / "checkpoints")
    (last / MANIFEST_NAME).unlink()
    checkpoints = open_checkpoints(str(tmp_path / "checkpoints"), last.parent.name)
    assert checkpoints is not None
    assert checkpoints.steps() == [int(before.name.removeprefix("step-"))]


def test_other_work_does_not_go_on_from_these_checkpoints(attempts: Any, kept: Any, tmp_path: Path) -> None:
    other = attempts("lora", "other", checkpoint_uri=str(tmp_path / "checkpoints"), seed=7)
    other.attempt()
    assert other.codes == [0], other.said
    assert "going on after" not in other.said
    assert len(folders(tmp_path / "checkpoints")) == 2  # and leaves them alone


def test_a_run_that_is_watched_otherwise_goes_on(attempts: Any, kept: Any, whole: Any, tmp_path: Path) -> None:
    """How often checkpoints are kept is no part of the work: a day of training is not thrown away for it."""
    other = attempts(
        "lora", "watched", checkpoint_uri=str(tmp_path / "checkpoints"), checkpoint_seconds=600.0, on_divergence="stop"
    )
    other.attempt()
    assert other.codes == [0], other.said
    assert "going on after step" in other.said


def _full_disk() -> None:
    """No room for what is trained, from the first checkpoint on."""
    from tunegate.train import tune_trainer

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tune_trainer.write_trainable = refuse


def test_a_disk_without_room_for_checkpoints_costs_the_checkpoints_and_not_the_run(
    attempts: Any, whole: Any, tmp_path: Path
) -> None:
    work = attempts("lora", "full-disk", checkpoint_uri=str(tmp_path / "checkpoints"))
    work.attempt(inside=_full_disk)
    assert work.codes == [0], work.said
    assert "the checkpoint of step 3 could not be written: [Errno 28] No space left on device" in work.said
    assert work.digest == whole("lora").digest


def test_without_a_place_for_checkpoints_it_is_said_that_nothing_was_kept(attempts: Any) -> None:
    work = attempts("lora", "nowhere")
    work.attempt(inside=_stopped_in_the_validation_of(4))
    assert work.codes == [75], work.said
    assert "give a checkpoint_uri" in work.said
    assert not work.arguments["output"].exists()
    assert not list(work.arguments["output"].parent.glob("*.partial"))


def test_a_storage_that_fails_is_told_and_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunegate.storage.open import open_storage

    place = tmp_path / "checkpoints"
    checkpoints = Checkpoints(open_storage(str(place)), "work")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "state.json").write_text("{}")
    place.write_text("a file where the folder should be")
    assert checkpoints.keep(tmp_path / "made", 3) is False
    assert "checkpoint of step 3 could not be kept" in capsys.readouterr().out
