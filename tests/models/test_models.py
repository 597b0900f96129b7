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
from tunegate.models.load import load_causal_lm, load_tokenizer


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


def test_a_template_whose_end_merges_with_the_answer_is_refused(tiny_base: Path) -> None:
    """The text has a border after 'assistant: '; the tokens of ' weather' lie across it."""
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    prompt, completion = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "weather of Paris"}]
    with pytest.raises(ModelError, match="merges the end of a prompt") as caught:
        render(tokenizer, prompt, completion)
    assert "from token" in caught.value.seen


def _without(base: Path, copy: Path, **changed: Any) -> Path:
    """A copy of ``base`` without the last norm, or with ``changed`` tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, copy)
    weights = load_file(copy / "model.safetensors")
    if not changed:
        del weights["model.norm.weight"]
    save_file({**weights, **changed}, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_weights_with_a_gap_are_refused_and_not_filled_with_random_numbers(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not those of its config\.json") as caught:
        load_causal_lm(_without(tiny_base, tmp_path / "model"))
    assert caught.value.items == ("model.norm.weight: missing",)


def test_a_tensor_of_another_shape_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    with pytest.raises(ModelError) as caught:
        load_causal_lm(_without(tiny_base, tmp_path / "model", **{"model.norm.weight": torch.ones(32)}))
    assert caught.value.exit_code == 2


def test_an_unknown_architecture_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}), "utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(copy)


def test_a_base_in_a_bucket_is_refused_with_how_to_fetch_it() -> None:
    with pytest.raises(ModelError, match="not read from a bucket") as caught:
        resolve_model("gs://bucket/model")
    assert "gcloud storage cp --recursive gs://bucket/model" in caught.value.remedy
