"""A quantization that is killed leaves nothing that passes for a model, and the next attempt succeeds."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import verify
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run

SETTINGS = QuantizeSettings(scheme="FP8_DYNAMIC")

#: Stands still where it is to be killed, and says so: a kill after a time would now and then come too late.
_STEP = """
import sys, time
from pathlib import Path
from tunegate.quantize import llmcompressor_backend, step
from tunegate.quantize.settings import QuantizeSettings

def stand_still(*args, **kwargs):
    print("here", flush=True)
    time.sleep(600)

def after(function):
    def called(*args, **kwargs):
        function(*args, **kwargs)
        stand_still()
    return called

where = sys.argv[1]
if where == "weights written":
    llmcompressor_backend._save_compressed = after(llmcompressor_backend._save_compressed)
else:
    step.quantization_page = stand_still
model, dataset, output = map(Path, sys.argv[2:])
step.run(QuantizeSettings(scheme="FP8_DYNAMIC"), model=model, dataset=dataset, output=output)
"""


@pytest.mark.parametrize(
    ("where", "written"), [("weights written", "model.safetensors"), ("manifest missing", "quantize.json")]
)
def test_a_killed_quantization_leaves_nothing_that_verifies(where, written, tiny_base, tiny_dataset, tmp_path) -> None:
    output, partial = tmp_path / "output", tmp_path / "output.partial"
    command = [sys.executable, "-c", _STEP, where, str(tiny_base), str(tiny_dataset), str(output)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ), text=True
    ) as step:
        assert step.stdout is not None
        assert "here\n" in iter(step.stdout.readline, "")
        step.kill()
    assert step.returncode == -signal.SIGKILL
    assert not output.exists() and (partial / written).exists()
    with pytest.raises(ArtifactError):
        verify(partial)
    shutil.copytree(partial, tmp_path / "renamed")  # by whom the folder that is left is taken for the whole one
    with pytest.raises(ArtifactError):
        verify(tmp_path / "renamed", kind="quantized")


def test_the_attempt_after_a_killed_one_makes_what_an_undisturbed_one_does(tiny_base, tiny_dataset, tmp_path) -> None:
    left = tmp_path / "output.partial"
    left.mkdir()
    (left / "model-00002-of-00002.safetensors").write_bytes(b"half of it")
    made = run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "output")
    assert not left.exists() and not (tmp_path / "output/model-00002-of-00002.safetensors").exists()
    assert run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "again") == made
    assert verify(tmp_path / "output", kind="quantized") == made
