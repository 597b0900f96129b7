"""Loading: safetensors only, no remote code, one rule for the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.models.files import check_model_folder
from tunegate.models.unpacked import load_unpacked, packed_method


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, able to pad and to end a turn.

    Raises:
        ModelError: when there is no end-of-sequence token, no chat template is needed here.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded.",
            seen=f"{type(error).__name__}: {_first_line(error)}",
            expected="tokenizer.json and tokenizer_config.json beside the weights",
            remedy="copy the tokenizer's files into the model's folder",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer in {folder} has no end-of-sequence token.",
            seen="eos_token is not set",
            expected="the token that ends an assistant's turn, for example <|im_end|>",
            remedy="set eos_token in tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def compute_dtype(dtype: str) -> Any:
    """The torch dtype of a name; ``auto`` is bfloat16 where a GPU is, else float32.

    On a CPU without bfloat16 units, bfloat16 is many times slower than float32.
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, dtype)


def load_causal_lm(folder: Path, *, dtype: str = "auto", quantization: Any = None) -> Any:
    """A causal language model on the device that the machine has.

    Args:
        folder: config.json and safetensors.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantization: a transformers quantization config, for example ``BitsAndBytesConfig``.

    Raises:
        ModelError: when the folder cannot be used, or its weights are not all that the architecture needs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = check_model_folder(folder)
    if packed := packed_method(config):
        return load_unpacked(folder, packed, dtype=compute_dtype(dtype), device=device_type())
    kwargs: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=compute_dtype(dtype),
            device_map=device_type(),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **kwargs,
        )
    except torch.OutOfMemoryError:  # a RuntimeError that says nothing about the folder
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"The model in {folder} cannot be loaded.",
            seen=f"{type(error).__name__}: {_first_line(error)}",
            expected="weights and a config.json that transformers loads",
            remedy="fetch or make the model again, and check that its config.json belongs to its weights",
        ) from error
    _check_complete(folder, found)
    return model


def _check_complete(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuses weights with gaps: transformers fills them with random numbers and only warns."""
    gaps = [f"{name}: missing" for name in sorted(found["missing_keys"])]
    gaps += [f"{name}: of another shape" for name in sorted(str(key) for key, *_ in found["mismatched_keys"])]
    if gaps:
        raise ModelError(
            f"The weights in {folder} are not those of its config.json.",
            seen=f"{len(gaps)} tensor(s) are missing or of another shape",
            expected="every tensor that the architecture has; a tied output layer may be left out",
            remedy="fetch or make the model again, and check that its config.json belongs to its weights",
            items=gaps,
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def device_type() -> str:
    """Where a model is loaded: ``cuda`` where a GPU is, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
