"""AutoAWQ 0.2.9, in its own environment."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.contracts.progress import Progress, say
from tunegate.quantize.legacy.job import Job
from tunegate.quantize.legacy.model_files import readable_copy, save

_STEP = "quantize"
_PARTS = ("qweight", "qzeros", "scales")


def quantize(job: Job) -> None:
    """Loads, quantizes and saves.

    Raises:
        ModelError: when AutoAWQ does not know the architecture.
    """
    import torch
    from awq import AutoAWQForCausalLM

    torch.manual_seed(job.seed)
    say(_STEP, f"loading {job.source}")
    with tempfile.TemporaryDirectory(prefix="tunegate-awq-") as scratch:
        model = _load(AutoAWQForCausalLM, readable_copy(Path(job.source), Path(scratch)))
    config = {"zero_point": True, "q_group_size": job.group_size, "w_bit": 4, "version": "GEMM"}
    longest = max(map(len, job.rows))
    model.quantize(
        quant_config=config,
        calib_data=[list(row) for row in job.rows],
        max_calib_samples=len(job.rows),
        max_calib_seq_len=longest,  # AutoAWQ drops longer rows, and cuts all of them, joined, into blocks of this
        quantizer_cls=_telling(Progress(_STEP, len(job.layers), "layers quantized")),
    )
    save(model.model, Path(job.source), Path(job.folder), layers=job.layers, parts=_PARTS, stated=_stated(job))


def _load(loader: Any, folder: Path) -> Any:
    """The model, in float16 where a GPU is: a CPU multiplies float16 many times slower than float32."""
    import torch

    on_gpu = torch.cuda.is_available()
    try:
        return loader.from_pretrained(
            str(folder),
            torch_dtype=torch.float16 if on_gpu else torch.float32,
            device_map="cuda" if on_gpu else "cpu",
            safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except TypeError as error:
        raise ModelError(
            "AutoAWQ does not know this architecture.",
            seen=str(error),
            expected="one that AutoAWQ 0.2.9 lists, for example llama, mistral, qwen2, qwen3, gemma2 or phi3",
            remedy="use backend llmcompressor with algorithm awq",
        ) from error


def _telling(progress: Progress) -> type:
    """AutoAWQ's quantizer, telling how far it is."""
    from awq.quantize.quantizer import AwqQuantizer

    class TellingQuantizer(AwqQuantizer):  # type: ignore[misc]
        """AwqQuantizer that counts the layers it has packed."""

        def _apply_quant(self, module: Any, named_linears: Mapping[str, Any]) -> None:
            super()._apply_quant(module, named_linears)
            progress.advance(len(named_linears))

    return TellingQuantizer


def _stated(job: Job) -> dict[str, Any]:
    """``quantization_config``, as transformers and vLLM read it."""
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": job.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None if "lm_head" in job.layers else ["lm_head"],
    }
