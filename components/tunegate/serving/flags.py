"""How a model is served in production: the one set of flags that the check before promotion and a deployment share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.settings import setting
from tunegate.serving.engine import DTYPES, Engine
from tunegate.serving.environment import ServeEnvironment


@dataclass(frozen=True)
class ServingFlags:
    """The engine of production: what decides how a model answers, and what it needs."""

    dtype: str = setting(
        "auto",
        help="what to compute in; auto: as an evaluation does, bfloat16 on a GPU and float32 on a CPU",
        choices=DTYPES,
    )
    max_model_len: int = setting(
        0, unit="tokens", minimum=0, help="the longest prompt and answer together; 0: what the model's config allows"
    )
    enforce_eager: bool = setting(
        False, help="compile nothing; on a CPU nothing is ever compiled: vLLM's compiled mode there answers garbage"
    )
    kv_cache_memory_bytes: int = setting(
        0, unit="bytes", minimum=0, help="the key-value cache; 0: 4 GiB on a CPU, vLLM's own rule on a GPU"
    )
    options: tuple[str, ...] = setting(
        (),
        help="further options, as vLLM's own command line has them; those that would change what is served are refused",
    )


def production_engine(flags: ServingFlags, model: Path, where: ServeEnvironment) -> Engine:
    """The engine that serves ``model`` under its content digest.

    Args:
        flags: the flags of production.
        model: the model's folder.
        where: the environment it is served in.
    """
    return Engine(
        model,
        dtype=served_dtype(flags, where),
        max_model_len=flags.max_model_len,
        enforce_eager=flags.enforce_eager or where.cpu,
        kv_cache_memory_bytes=flags.kv_cache_memory_bytes,
        extra=flags.options,
    )


def served_dtype(flags: ServingFlags, where: ServeEnvironment) -> str:
    """What is computed in. vLLM's own ``auto`` is never meant: it turns float32 weights into bfloat16 on a CPU too."""
    if flags.dtype != "auto":
        return flags.dtype
    return "float32" if where.cpu else "bfloat16"
