"""Compiles the pipelines to the YAML documents that a KFP cluster takes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tunegate.contracts.files import write_atomically
from tunegate_pipelines.image_digests import located, pinned
from tunegate_pipelines.platform_settings import Platform, compiled_for

#: Each pipeline is the function of its name in the module of its name.
PIPELINES = ("finetune", "retrain", "approve", "promote", "deploy")


def golden(pipeline: str) -> Path:
    """The compiled pipeline as it is kept beside the code, and held against the code by a test."""
    return Path(__file__).with_name(f"{pipeline}.yaml")


def compile_pipeline(
    pipeline: str,
    output: Path,
    *,
    image_prefix: str = "",
    digests: Mapping[str, str] | None = None,
    platform: Platform | None = None,
    check: Callable[[str], None] = lambda document: None,
) -> Path:
    """Writes a compiled pipeline to ``output``.

    Args:
        pipeline: one of :data:`PIPELINES`.
        output: where to write; the same code gives the same bytes.
        image_prefix: put before each image's name, for example ``registry.example.com/ml/``.
        digests: image → digest, by which each is then named; None: by the tag of this version.
        platform: what it is compiled for; None: any KFP. On Kubernetes the file then holds a second document with what
            pods are told.
        check: is given the document before it is written, and raises where it must not be.

    Raises:
        InputError: when an image of the pipeline has no digest; nothing is written then.
    """
    from kfp import compiler

    with tempfile.TemporaryDirectory(prefix="tunegate-") as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(_traced(pipeline, platform), package_path=str(path))
        text = path.read_text("utf-8")
    text = located(text, image_prefix) if digests is None else pinned(text, digests, prefix=image_prefix)
    check(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text.encode())
    return output


def _traced(pipeline: str, platform: Platform | None) -> Any:
    """The pipeline as its module has it, or traced again for a platform."""
    component = getattr(import_module(f"tunegate_pipelines.{pipeline}"), pipeline)
    if platform is None:
        return component
    from kfp import dsl

    with compiled_for(platform):
        return dsl.pipeline(name=pipeline, display_name=f"tunegate {pipeline}")(component.pipeline_func)
