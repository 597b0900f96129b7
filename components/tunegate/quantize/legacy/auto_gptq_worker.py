"""AutoGPTQ 0.7.1, in its own environment. It quantizes on a GPU alone."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, SettingsError
from tunegate.contracts.progress import Progress, say
from tunegate.quantize.legacy.job import Job
from tunegate.quantize.legacy.model_files import readable_copy, save

_STEP = "quantize"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_QUANTIZING = re.compile(r"^Quantizing \S+ in layer")


def quantize(job: Job) -> None:
    """Loads, quantizes and saves.

    Raises:
        SettingsError: when there is no GPU.
        ModelError: when AutoGPTQ does not know the architecture.
    """
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "AutoGPTQ quantizes on an NVIDIA GPU alone.",
            seen="torch finds no CUDA device",
            expected="a GPU on this machine",
            remedy="use backend llmcompressor with scheme W4A16 and algorithm gptq, which runs on a CPU too",
        )
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    torch.manual_seed(job.seed)
    say(_STEP, f"loading {job.source}")
    config = BaseQuantizeConfig(
        bits=4, group_size=job.group_size, damp_percent=job.dampening_frac, desc_act=False, sym=True
    )
    with tempfile.TemporaryDirectory(prefix="tunegate-gptq-") as scratch:
        model = _load(AutoGPTQForCausalLM, config, readable_copy(Path(job.source), Path(scratch)))
    _tell_progress(Progress(_STEP, len(job.layers), "layers quantized"))
    model.quantize([{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in job.rows])
    stated = {**config.to_dict(), "checkpoint_format": "gptq", "model_name_or_path": None}
    save(model.model, Path(job.source), Path(job.folder), layers=job.layers, parts=_PARTS, stated=stated)


def _load(loader: Any, config: Any, folder: Path) -> Any:
    import torch

    try:
        return loader.from_pretrained(
            str(folder), config, torch_dtype=torch.float16, trust_remote_code=False, use_safetensors=True
        )
    except TypeError as error:
        raise ModelError(
            "AutoGPTQ does not know this architecture.",
            seen=str(error),
            expected="one that AutoGPTQ 0.7.1 lists, for example llama, mistral, qwen2 or gemma",
            remedy="use backend llmcompressor with algorithm gptq",
        ) from error


def _tell_progress(progress: Progress) -> None:
    """Turns AutoGPTQ's log into progress lines."""

    class Telling(logging.Handler):
        """Counts the layers that the log names."""

        def emit(self, record: logging.LogRecord) -> None:
            if _QUANTIZING.match(record.getMessage()):
                progress.advance()

    logging.getLogger("auto_gptq.modeling._base").addHandler(Telling())
