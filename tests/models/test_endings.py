"""Where an answer ends: files that disagree are refused before anything is trained, those that agree pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ModelError
from tunegate.models.endings import refuse_contradictions, turn_end
from tunegate.models.load import load_tokenizer

#: Ids of the tiny tokenizer's special tokens.
ENDOFTEXT, START, END = 0, 1, 2

Change = Callable[[Path], None]


def document(name: str, **values: Any) -> Change:
    """Sets entries of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text("utf-8")) | values
        (folder / name).write_text(json.dumps({k: v for k, v in found.items() if v is not None}), "utf-8")

    return change


def template(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        assert old in path.read_text("utf-8")
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")

    return change


def without_generation(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


GENERATION, CONFIG, TOKENIZER = "generation_config.json", "config.json", "tokenizer_config.json"

#: What is changed, and what the refusal must name.
CONTRADICTIONS: dict[str, tuple[tuple[Change, ...], tuple[str, ...]]] = {
    "the model stops elsewhere than the template ends a turn": (
        (
            document(GENERATION, eos_token_id=ENDOFTEXT),
            document(CONFIG, eos_token_id=ENDOFTEXT),
            document(TOKENIZER, eos_token="<|endoftext|>"),
        ),
        ("'<|im_end|>' (id 2)", "'<|endoftext|>' (id 0)", "set eos_token_id to [0, 2] in generation_config.json"),
    ),
    "config.json is what counts where there are no generation settings": (
        (
            without_generation,
            document(CONFIG, eos_token_id=ENDOFTEXT),
            document(TOKENIZER, eos_token="<|endoftext|>"),
        ),
        ("'<|im_end|>' (id 2)", "in config.json"),
    ),
    "the tokenizer ends a text elsewhere than the model": (
        (document(TOKENIZER, eos_token="<|endoftext|>"),),
        ("eos_token of tokenizer_config.json is '<|endoftext|>' (id 0)", "generation_config.json is '<|im_end|>'"),
    ),
    "config and generation settings share no token": (
        (document(CONFIG, eos_token_id=ENDOFTEXT),),
        ("config.json: '<|endoftext|>' (id 0)", "generation_config.json: '<|im_end|>' (id 2)"),
    ),
    "nothing ends an answer": (
        (document(CONFIG, eos_token_id=None), document(GENERATION, eos_token_id=None)),
        ("no eos_token_id", "set eos_token_id to 2"),
    ),
    "padding without an embedding": (
        (document(CONFIG, pad_token_id=100_000),),
        ("config.json, pad_token_id: 100000", "below vocab_size"),
    ),
    "the tokenizer pads with what opens a turn": (
        (document(TOKENIZER, pad_token="<|im_start|>"),),
        ("pad_token_id of tokenizer_config.json is '<|im_start|>' (id 1)", "set pad_token_id to 2 ('<|im_end|>')"),
    ),
    "finished rows are padded with what opens a turn": (
        (document(GENERATION, pad_token_id=START),),
        ("pad_token_id of generation_config.json is '<|im_start|>'", "into every turn"),
    ),
    "finished rows are padded with text": (
        (document(CONFIG, pad_token_id=37), document(GENERATION, pad_token_id=37)),
        ("pad_token_id of config.json is", "pad_token_id of generation_config.json is", "(id 37)", "ordinary text"),
    ),
    "an end without an embedding": (
        (document(GENERATION, eos_token_id=[END, 100_000]),),
        ("generation_config.json, eos_token_id: 100000", "below vocab_size"),
    ),
    "generation settings that are no JSON": (
        (lambda folder: (folder / GENERATION).write_text("[]") and None,),
        ("generation_config.json cannot be read",),
    ),
}

#: Each as near to a contradiction as it may be.
AGREEING: dict[str, tuple[Change, ...]] = {
    "as it is": (),
    "several ends, the turn's among them": (document(GENERATION, eos_token_id=[ENDOFTEXT, END]),),
    "config.json alone": (without_generation,),
    "no padding token": (document(CONFIG, pad_token_id=None), document(GENERATION, pad_token_id=None)),
    "-1 for no padding token": (document(CONFIG, pad_token_id=-1),),
    "no padding token of the tokenizer": (document(TOKENIZER, pad_token=None),),
    "tokenizer and generation settings pad with different special tokens": (document(GENERATION, pad_token_id=END),),
    "what ends a text opens it too, and pads": (
        template("{% for", "{{ '<|endoftext|>' }}{% for"),
        document(GENERATION, eos_token_id=[ENDOFTEXT, END]),
    ),
    "a token behind the end of the turn pads": (template("<|im_end|>", "<|im_end|><|endoftext|>"),),
    "the end of a turn pads": (document(CONFIG, pad_token_id=END), document(TOKENIZER, pad_token="<|im_end|>")),
}


@pytest.fixture
def changed(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny base with some files changed."""

    def make(*changes: Change) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_base, folder)
        for change in changes:
            change(folder)
        return folder

    return make


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_disagree_on_where_an_answer_ends_are_refused_by_name(
    name: str, changed: Callable[..., Path]
) -> None:
    changes, said = CONTRADICTIONS[name]
    folder = changed(*changes)
    with pytest.raises(ModelError) as caught:
        refuse_contradictions(folder, load_tokenizer(folder), conversations=True)
    assert caught.value.exit_code == 2
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", AGREEING)
def test_files_that_agree_are_not_refused(name: str, changed: Callable[..., Path]) -> None:
    folder = changed(*AGREEING[name])
    refuse_contradictions(folder, load_tokenizer(folder), conversations=True)


def test_a_template_that_no_row_uses_is_not_held_against_the_model(changed: Callable[..., Path]) -> None:
    """A base that continues text, with a chat template of a tuned sibling beside it."""
    folder = changed(*CONTRADICTIONS["the model stops elsewhere than the template ends a turn"][0])
    refuse_contradictions(folder, load_tokenizer(folder), conversations=False)


def test_padding_with_what_opens_a_turn_is_no_matter_where_there_are_no_turns(changed: Callable[..., Path]) -> None:
    folder = changed(*CONTRADICTIONS["the tokenizer pads with what opens a turn"][0])
    refuse_contradictions(folder, load_tokenizer(folder), conversations=False)


def test_the_end_of_a_turn_is_what_the_template_puts_after_the_answer(changed: Callable[..., Path]) -> None:
    assert turn_end(load_tokenizer(changed())) == END


def test_a_template_that_ends_a_turn_with_plain_text_ends_it_with_no_token(changed: Callable[..., Path]) -> None:
    assert turn_end(load_tokenizer(changed(template("<|im_end|>", "###")))) is None


def test_prepare_refuses_before_a_row_is_written(changed: Callable[..., Path], rows_file: Path, tmp_path: Path) -> None:
    from tunegate.prepare.settings import PrepareSettings
    from tunegate.prepare.step import run

    folder = changed(document(TOKENIZER, eos_token="<|endoftext|>"))
    with pytest.raises(ModelError, match="different tokens"):
        run(PrepareSettings(), dataset=str(rows_file), base_model=folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
