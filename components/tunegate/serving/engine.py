"""What is served and how: one frozen description, and the command line and environment that vLLM gets for it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.vllm import SERVED_RANK, SERVED_RANKS, smallest_served
from tunegate.serving.environment import ServeEnvironment
from tunegate.serving.isolation import isolated

DTYPES = ("auto", "float32", "bfloat16", "float16")

#: The key-value cache on a CPU. vLLM's own rule takes 92 % of all memory, and does not start where less is free.
CPU_KV_CACHE_BYTES = 4 << 30

#: What vLLM may see of our environment beyond what every process does.
_PASSED_ON = ("VLLM_CACHE_ROOT", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")

#: What vLLM is told unless our environment says otherwise. While one server takes another's place, both have their
#: threads on the same cores of a CPU: threads that spin at a barrier keep each other from ever getting there.
_USUAL: Mapping[str, str] = {"OMP_WAIT_POLICY": "PASSIVE"}

#: What every vLLM is told beyond what every process is.
_TOLD: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # with AMX, 4-bit weights would be multiplied by 8-bit activations that nobody judged
}

#: Options that a field of ``Engine`` states.
_OURS = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--dtype", "--max-model-len", "--enforce-eager",
    "--kv-cache-memory-bytes", "--load-format", "--generation-config", "--enable-lora", "--lora-modules", "--max-loras",
    "--max-lora-rank", "--disable-uvicorn-access-log", "--disable-fastapi-docs",
)  # fmt: skip

#: Further options that may be given: of where and how much is computed at once, of what is told, and of how answers are
#: taken apart. All others are refused, since every new vLLM has more that let in code, or weights that nobody judged.
_ALLOWED = (
    "--all2all-backend", "--api-server-count", "--async-scheduling", "--attention-backend", "--block-size",
    "--cpu-offload-gb", "--cudagraph-capture-sizes", "--data-parallel-size", "--data-parallel-size-local",
    "--decode-context-parallel-size", "--disable-cascade-attn", "--disable-custom-all-reduce",
    "--disable-hybrid-kv-cache-manager", "--disable-log-stats", "--disable-sliding-window",
    "--distributed-executor-backend", "--enable-auto-tool-choice", "--enable-chunked-prefill",
    "--enable-expert-parallel", "--enable-force-include-usage", "--enable-log-requests", "--enable-prefix-caching",
    "--enable-prompt-tokens-details", "--enable-server-load-tracking", "--fully-sharded-loras",
    "--gpu-memory-utilization", "--kv-cache-dtype", "--language-model-only", "--limit-mm-per-prompt",
    "--linear-backend", "--long-prefill-token-threshold", "--max-cpu-loras", "--max-cudagraph-capture-size",
    "--max-log-len", "--max-logprobs", "--max-num-batched-tokens", "--max-num-seqs",
    "--max-parallel-loading-workers", "--moe-backend", "--numa-bind", "--numa-bind-cpus", "--numa-bind-nodes",
    "--optimization-level", "--performance-mode", "--pipeline-parallel-size", "--prefix-caching-hash-algo",
    "--reasoning-parser", "--root-path", "--safetensors-load-strategy", "--scheduling-policy", "--seed",
    "--shutdown-timeout", "--skip-mm-profiling", "--stream-interval", "--tensor-parallel-size", "--tokenizer-mode",
    "--tool-call-parser", "--uvicorn-log-level",
)  # fmt: skip

#: Variables by which vLLM would load an adapter while it serves, or code that nobody judged.
_NEVER_TOLD = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_PLUGINS")

_NAME = re.compile(r"[\w.@:/-]+")


@dataclass(frozen=True)
class Engine:
    """A model on vLLM.

    Attributes:
        model: the model's folder, an artifact or a plain one with safetensors.
        served_name: what requests call it; empty: its content digest, so that an answer proves which bytes gave it.
        further_names: what requests may call it as well; its answers carry the first name all the same.
        host: where it listens.
        port: where it listens; 0: one that is free.
        dtype: in what it computes; ``auto``: in the dtype of the weights, and in bfloat16 where that is float32. An
            evaluation on a CPU computes in float32.
        max_model_len: the longest prompt and answer together, in tokens; 0: what the model's config allows.
        enforce_eager: whether nothing is compiled; None: as the build asks for. On a CPU it must not be False: vLLM's
            compiled mode there answered garbage on weights that eager mode and transformers answered correctly.
        kv_cache_memory_bytes: the key-value cache; 0: 4 GiB on a CPU, vLLM's own rule on a GPU.
        lora_modules: name → folder of each adapter; names must not change their adapter while a server lives.
        max_loras: how many adapters one batch may mix; 0: all of ``lora_modules``.
        max_lora_rank: the largest rank; 0: the smallest that vLLM allows and every adapter fits.
        extra: further options, as vLLM's own command line has them.
        environment: further variables, for example vLLM's own ``VLLM_*``.
    """

    model: Path
    served_name: str = ""
    further_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    dtype: str = "auto"
    max_model_len: int = 0
    enforce_eager: bool | None = None
    kv_cache_memory_bytes: int = 0
    lora_modules: Mapping[str, Path] = field(default_factory=dict)
    max_loras: int = 0
    max_lora_rank: int = 0
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def command_line(engine: Engine, where: ServeEnvironment, *, served_name: str, port: int) -> list[str]:
    """The command that serves ``engine``.

    Args:
        engine: what is served.
        where: the environment it is started in.
        served_name: what requests call the model.
        port: where it listens, not 0.

    Raises:
        SettingsError: for a value that vLLM would refuse a minute later, or that would undo what is stated here.
        AdapterError: for an adapter that vLLM would read a pickle of, or cannot place.
    """
    _check(engine, where, served_name)
    # vLLM's own command finds no metadata in a build for a CPU (0.32); the module that it calls is in every version.
    command = [str(where.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(engine.model.absolute()), "--served-model-name", served_name, *engine.further_names]
    command += ["--host", engine.host, "--port", str(port), "--dtype", engine.dtype]
    # Never a pickle; and the model's own generation config, as transformers applies it in an evaluation.
    command += ["--load-format", "safetensors", "--generation-config", "auto"]
    command += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if engine.max_model_len:
        command += ["--max-model-len", str(engine.max_model_len)]
    if engine.enforce_eager or where.cpu:
        command.append("--enforce-eager")
    cache_bytes = engine.kv_cache_memory_bytes or (CPU_KV_CACHE_BYTES if where.cpu else 0)
    if cache_bytes:
        command += ["--kv-cache-memory-bytes", str(cache_bytes)]
    return [*command, *_lora_options(engine), *engine.extra]


def process_environment(engine: Engine, ours: Mapping[str, str]) -> dict[str, str]:
    """The environment vLLM is started in: a few of our variables, what it is always told, and the engine's own.

    Args:
        engine: what is served.
        ours: the environment of this process.
    """
    return {**_USUAL, **isolated(ours, passed_on=_PASSED_ON), **_TOLD, **engine.environment}


def _check(engine: Engine, where: ServeEnvironment, served_name: str) -> None:
    if where.cpu and engine.enforce_eager is False:
        raise SettingsError(
            "vLLM's compiled mode is not used on a CPU.",
            seen="enforce_eager: false",
            expected="true, or none stated",
            remedy="leave enforce_eager out: compiled, this build answers garbage on weights that are right",
        )
    if engine.dtype not in DTYPES:
        raise _wrong("dtype", engine.dtype, f"one of {', '.join(DTYPES)}")
    if not 0 <= engine.port < 1 << 16:
        raise _wrong("port", engine.port, "0 (one that is free) to 65535")
    for name in ("max_model_len", "kv_cache_memory_bytes", "max_loras"):
        if getattr(engine, name) < 0:
            raise _wrong(name, getattr(engine, name), "0 or more")
    names = [served_name, *engine.further_names, *engine.lora_modules]
    unusable = [name for name in names if not _NAME.fullmatch(name)]
    if unusable or len(set(names)) < len(names):
        raise _wrong("served_name or lora_modules", ", ".join(unusable or names), "names that differ, without spaces")
    _check_extra(engine.extra)
    loading = [name for name in _NEVER_TOLD if name in engine.environment]
    if loading:
        raise _wrong("environment", ", ".join(loading), "none that loads adapters or code into a server that runs")


def _check_extra(extra: tuple[str, ...]) -> None:
    """vLLM takes underscores and ``--no-`` as well, and unambiguous beginnings of a name, which are refused here."""
    for option in extra:
        if not option.startswith("-") or re.fullmatch(r"-[\d.]+", option):
            continue  # a value
        name = option.partition("=")[0].replace("_", "-")
        name = name.replace("--no-", "--", 1) if name.startswith("--no-") else name
        if name not in _ALLOWED:
            ours = any(known.startswith(name) for known in _OURS if len(name) > len("--"))
            why = "a field of Engine states it" if ours else "it is none of those that change nothing that was judged"
            near = difflib.get_close_matches(name, _ALLOWED, n=1)
            raise _wrong("extra", option, f"{near[0]}, or another that is known: {why}" if near else f"others: {why}")


def _wrong(name: str, seen: object, expected: str) -> SettingsError:
    return SettingsError(
        f"serving.{name} cannot be used.", seen=repr(seen), expected=expected, remedy=f"change {name} and start again"
    )


def _lora_options(engine: Engine) -> list[str]:
    if not engine.lora_modules and not engine.max_loras:
        if engine.max_lora_rank:
            raise _wrong("max_lora_rank", engine.max_lora_rank, "0 where no adapter is served")
        return []
    ranks = {name: _rank(folder) for name, folder in engine.lora_modules.items()}
    options = ["--enable-lora", "--max-loras", str(engine.max_loras or len(engine.lora_modules))]
    options += ["--max-lora-rank", str(_largest_rank(engine, ranks))]
    if engine.lora_modules:
        options.append("--lora-modules")
    for name, folder in engine.lora_modules.items():
        options.append(json.dumps({"name": name, "path": str(folder.absolute())}))
    return options


def _largest_rank(engine: Engine, ranks: Mapping[str, int]) -> int:
    needed = max(ranks.values(), default=1)
    if engine.max_lora_rank and engine.max_lora_rank not in SERVED_RANKS:
        raise _wrong("max_lora_rank", engine.max_lora_rank, f"one of {', '.join(map(str, SERVED_RANKS))}")
    allowed = smallest_served(needed)
    if not allowed or 0 < engine.max_lora_rank < needed:
        raise AdapterError(
            "An adapter does not fit the rank that vLLM is started with.",
            seen=f"rank {needed}",
            expected=f"a rank up to {engine.max_lora_rank or SERVED_RANK}",
            remedy="leave max_lora_rank out" if allowed else "merge the adapter and serve the merged model",
            items=[f"{name}: rank {rank}" for name, rank in ranks.items() if rank == needed],
        )
    return engine.max_lora_rank or allowed


def _rank(folder: Path) -> int:
    """The largest rank in an adapter's config.

    Raises:
        AdapterError: for a folder without safetensors (vLLM would then load a pickle) or without a rank.
    """
    try:
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("no adapter_model.safetensors")
        config = read_json_object(folder / "adapter_config.json")
        return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{folder} is no adapter that can be served.",
            seen=f"{type(error).__name__}: {error}",
            expected="PEFT's adapter_config.json with 'r', and adapter_model.safetensors",
            remedy="give the folder that train or PEFT wrote",
        ) from error
