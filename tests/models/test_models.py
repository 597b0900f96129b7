"""Models: only safetensors are loaded, and a conversation is rendered as TRL renders it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError
from tunegate.models.chat import render, render_text
from tunegate.models.files import check_model_folder, resolve_model
from tunegate.models.load import load_tokenizer


def test_a_name_that_is_neither_folder_nor_pinned_hub_name_is_refused() -> None:
    for text in ("no/such", "nowhere", "../x@main"):
        with pytest.raises(ModelError, match="was not found") as caught:
            resolve_model(text)
        assert caught.value.exit_code == 2


def test_remote_code_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="code of its own"):
        check_model_folder(copy)


def test_pickled_weights_are_never_a_model(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        check_model_folder(copy)


def test_a_rendered_conversation_is_what_trl_tokenizes(tiny_base: Path, tiny_rows: list[dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(tiny_base)
    messages = tiny_rows[0]["messages"]
    rendered = render(tokenizer, messages[:-1], messages[-1:])
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True)
    assert rendered.prompt_ids == prompt["input_ids"]
    assert rendered.prompt_ids + rendered.completion_ids == whole
    assert rendered.completion_text == messages[-1]["content"] + "<|im_end|>\n"


def test_plain_text_ends_with_the_end_of_sequence_once(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    ids = render_text(tokenizer, "weather of Paris")
    assert ids[-1] == tokenizer.eos_token_id
    assert render_text(tokenizer, "weather of Paris" + tokenizer.eos_token) == ids


def test_a_tokenizer_without_template_is_refused_with_what_to_do(
    tiny_base: Path, tiny_rows: list[dict[str, Any]]
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        render(tokenizer, tiny_rows[0]["messages"][:-1], tiny_rows[0]["messages"][-1:])
