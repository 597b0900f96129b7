"""The backends of another environment: what can be known without it, and what its process says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunegate.contracts.errors import ModelError, RunError, SettingsError, error_line
from tunegate.quantize.calibration import Calibration
from tunegate.quantize.legacy.environment import PYTHON_VARIABLE, USUAL_PLACE, check_environment, find_python
from tunegate.quantize.legacy.job import Job, read_job
from tunegate.quantize.legacy.model_files import old_config
from tunegate.quantize.legacy.process import run_worker
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.step import run
from tunegate.quantize.work import Work

SETTINGS = QuantizeSettings(backend="autoawq", scheme="W4A16_ASYM", num_calibration_samples=8)


def _python(folder: Path, does: str = "") -> Path:
    """A Python that holds every distribution, and works as the shell script ``does``."""
    path = folder / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = -I ] && exit 0\n{does}\n', "utf-8")
    path.chmod(0o755)
    return path


def _work(tmp_path: Path) -> Work:
    calibration = Calibration(("a",), ((1, 2, 3),), 0, ("",))
    return Work(SETTINGS, tmp_path, tmp_path / "out", ("model.layers.0.mlp.up_proj",), 64, calibration)


def test_the_setting_comes_before_the_variable_and_the_variable_before_the_usual_place(tmp_path, monkeypatch) -> None:
    usual, named, given = (_python(tmp_path / place) for place in (USUAL_PLACE.parent, "named", "given"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert find_python("autoawq") == usual
    monkeypatch.setenv(PYTHON_VARIABLE, str(named))
    assert find_python("autoawq") == named
    assert find_python("autoawq", given=str(given)) == given


@pytest.mark.parametrize(
    ("python", "seen"),
    [("/nowhere/python", "no such file"), (sys.executable, "without autoawq"), (__file__, "PermissionError")],
)
def test_an_environment_that_cannot_run_autoawq_is_named_before_the_model_is_loaded(
    python, seen, make_base, tiny_dataset, tmp_path
) -> None:
    settings = QuantizeSettings(backend="autoawq", scheme="W4A16_ASYM", legacy_python=python)
    with pytest.raises(SettingsError, match="no environment to run autoawq") as caught:
        run(settings, model=make_base(hidden=128), dataset=tiny_dataset, output=tmp_path / "out")
    assert python in caught.value.seen and seen in caught.value.seen
    assert "make quantize-legacy-environment" in caught.value.remedy and not list(tmp_path.iterdir())


def test_auto_gptq_without_a_gpu_is_refused_before_anything_is_spent(tmp_path) -> None:
    check_environment("llmcompressor")
    without = _python(tmp_path, "")
    without.write_text('#!/bin/sh\ncase "$3" in *cuda*) exit 1;; esac\n', "utf-8")
    check_environment("autoawq", given=str(without))
    with pytest.raises(SettingsError, match="GPU alone") as caught:
        check_environment("auto_gptq", given=str(without))
    assert "llmcompressor" in caught.value.remedy
    check_environment("auto_gptq", given=str(_python(tmp_path / "with")))


@pytest.mark.parametrize("backend", ["autoawq", "auto_gptq"])
def test_a_layer_that_the_backend_would_quantize_all_the_same_is_refused(
    backend, tiny_base, tiny_dataset, tmp_path
) -> None:
    scheme = "W4A16_ASYM" if backend == "autoawq" else "W4A16"
    ignore = ("lm_head", "model.layers.0.mlp.up_proj")
    settings = QuantizeSettings(backend=backend, scheme=scheme, ignore=ignore, legacy_python=str(_python(tmp_path)))
    with pytest.raises(SettingsError, match="all of them and no other") as caught:
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert caught.value.items == ("model.layers.0.mlp.up_proj left out",)


def test_outputs_that_autoawq_cannot_divide_are_refused_with_their_layers(tiny_base, tiny_dataset, tmp_path) -> None:
    settings = QuantizeSettings(backend="autoawq", scheme="W4A16_ASYM", legacy_python=str(_python(tmp_path)))
    with pytest.raises(SettingsError, match="64 outputs") as caught:
        run(settings, model=tiny_base, dataset=tiny_dataset, output=tmp_path / "out")
    assert "model.layers.0.self_attn.k_proj (outputs 32)" in caught.value.items


def test_progress_comes_through_and_nothing_else(tmp_path, capfd) -> None:
    does = "echo '[quantize] 1/1 layers quantized · 1s in all'; echo 'AWQ: 100%|####|' >&2; exit 0"
    run_worker(_work(tmp_path), _python(tmp_path, does))
    out, err = capfd.readouterr()
    assert out == "[quantize] 1/1 layers quantized · 1s in all\n" and err == ""


def test_an_error_of_the_worker_is_raised_here_whole(tmp_path) -> None:
    error = ModelError("No.", seen="this", expected="that", remedy="do it", items=["a"])
    (tmp_path / "line").write_text(error_line(error) + "\n", "utf-8")
    with pytest.raises(ModelError, match="No") as caught:
        run_worker(_work(tmp_path), _python(tmp_path, f"cat {tmp_path / 'line'} >&2; exit 2"))
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(("ends", "seen"), [("kill -9 $$", "killed by signal 9"), ("exit 3", "exit code 3")])
def test_a_worker_that_ends_otherwise_is_a_failed_run_with_its_last_words(ends, seen, tmp_path) -> None:
    with pytest.raises(RunError, match="autoawq ended") as caught:
        run_worker(_work(tmp_path), _python(tmp_path, f"echo 'out of memory' >&2; {ends}"))
    assert caught.value.seen == seen and caught.value.items == ("out of memory",)


def test_the_worker_gets_the_job_and_imports_only_the_light_part_of_the_package(tmp_path) -> None:
    """The other environment has libraries of other versions, and not all of ours."""
    job = Job("autoawq", "in", "out", ("a.b",), 64, ((1, 2), (3,)), 0.01, 7)
    job.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job
    loaded = "import sys, tunegate.quantize.legacy.worker; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_worker_imports_nothing_from_the_folder_one_stands_in_and_sees_no_token(tmp_path, monkeypatch) -> None:
    """A ``torch.py`` beside the recipe would be run in the name of the library."""
    told = tmp_path / "told"
    for folder in (tmp_path / "here", tmp_path / "path"):
        folder.mkdir()
        (folder / "torch.py").write_text(f"open({str(told)!r}, 'w').write('executed')\n", "utf-8")
    seen = "import json, os, sys; json.dump([os.environ.copy(), os.getcwd(), sys.path], open(sys.argv[1], 'w'))"
    (tmp_path / "see.py").write_text(seen, "utf-8")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    # The worker itself, by a Python of the same kind: it ends where AutoAWQ is not found, after it has imported torch.
    does = f'{sys.executable} {tmp_path / "see.py"} {tmp_path / "seen.json"}; exec {sys.executable} "$@"'
    with pytest.raises(RunError, match="autoawq ended") as caught:
        run_worker(_work(tmp_path), _python(tmp_path, does))
    assert "No module named 'awq'" in caught.value.items[-1] and not told.exists()
    environment, stands_in, imports_from = json.loads((tmp_path / "seen.json").read_text("utf-8"))
    assert "HF_TOKEN" not in environment and environment["PYTHONSAFEPATH"] == environment["PYTHONNOUSERSITE"] == "1"
    assert not {str(tmp_path / "here"), str(tmp_path / "path")} & {stands_in, *imports_from}


def test_the_worker_ends_with_the_step_that_started_it(tmp_path) -> None:
    """A step that is killed must not leave a process behind that fills memory for an hour."""
    python = _python(tmp_path, f"echo $$ > {tmp_path / 'pid'}; exec sleep 600")
    script = (
        "from pathlib import Path\nfrom tests.quantize.test_legacy_process import _work\n"
        "from tunegate.quantize.legacy.process import run_worker\n"
        f"run_worker(_work(Path({str(tmp_path)!r})), Path({str(python)!r}))\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as step:
        try:
            _wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
        finally:
            step.kill()
    worker = int((tmp_path / "pid").read_text())
    _wait_for(lambda: not Path(f"/proc/{worker}").exists())


def _wait_for(done) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def test_the_config_is_said_in_the_words_of_transformers_4() -> None:
    """Left out, the old transformers takes a rope_theta of 10000, and quantizes another model than it was given."""
    new = {"dtype": "bfloat16", "hidden_size": 64, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert old_config(new) == {"torch_dtype": "bfloat16", "hidden_size": 64, "rope_theta": 5e5}
    scaled = {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0}
    assert old_config({"rope_parameters": scaled})["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    assert old_config({"rope_theta": 1e4}) == {"rope_theta": 1e4}
    with pytest.raises(ModelError, match="rotary"):
        old_config({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}})
