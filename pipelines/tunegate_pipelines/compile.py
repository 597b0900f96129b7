"""Compiles the pipeline to the one YAML document that a KFP cluster takes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tunegate.contracts.files import write_atomically

#: The compiled pipeline as it is kept beside the code, and held against the code by a test.
GOLDEN = Path(__file__).with_name("finetune.yaml")


def compile_finetune(output: Path, *, image_prefix: str = "") -> Path:
    """Writes the compiled pipeline ``finetune`` to ``output``.

    Args:
        output: where to write; the same code gives the same bytes.
        image_prefix: put before each image's name, for example ``registry.example.com/ml/``.
    """
    from kfp import compiler

    from tunegate_pipelines.finetune import finetune

    with tempfile.TemporaryDirectory(prefix="tunegate-") as folder:
        path = Path(folder) / "finetune.yaml"
        compiler.Compiler().compile(finetune, package_path=str(path))
        text = path.read_text("utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text.replace("image: tunegate/", f"image: {image_prefix}tunegate/").encode())
    return output
