"""A quantization that is killed leaves nothing that passes for a model, and the next attempt succeeds."""

import os
import subprocess
import sys
import time

import pytest

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import verify
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run

SETTINGS = QuantizeSettings(scheme="FP8_DYNAMIC")

_STEP = """
import sys
from pathlib import Path
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run
model, dataset, output = map(Path, sys.argv[1:])
run(QuantizeSettings(scheme="FP8_DYNAMIC"), model=model, dataset=dataset, output=output)
"""


@pytest.mark.parametrize("waits_for", ["output.partial", "output.partial/model.safetensors"])
def test_a_killed_quantization_leaves_no_folder_that_verifies_and_a_retry_succeeds(
    waits_for, tiny_base, tiny_dataset, tmp_path
) -> None:
    output = tmp_path / "output"
    command = [sys.executable, "-c", _STEP, str(tiny_base), str(tiny_dataset), str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)) as step:
        while not (tmp_path / waits_for).exists() and not output.exists() and step.poll() is None:
            time.sleep(0.001)
        step.kill()
    partial = tmp_path / "output.partial"
    if partial.exists() and not (partial / "manifest.json").exists():  # the manifest is written when all else is there
        with pytest.raises(ArtifactError):
            verify(partial)
    if output.exists():  # the rename came before the kill: then it is whole
        verify(output, kind="quantized")
    made = run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=output)
    assert verify(output, kind="quantized").content_digest == made.content_digest
    assert not partial.exists()
