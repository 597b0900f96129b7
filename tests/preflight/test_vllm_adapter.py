"""Will vLLM load this adapter: each verdict is the one of vLLM's own loader, in its own words."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import InputError, LintError
from tunegate.contracts.vllm import DEFAULT_SERVED_RANK, SERVED_RANKS, smallest_served
from tunegate.preflight import vllm_adapter
from tunegate.preflight.adapter_rules import ADAPTER_RULES
from tunegate.preflight.vllm_adapter import lint_adapter, refuse_adapter

HIDDEN, INNER, KEYS, VOCABULARY, LAYERS = 64, 128, 32, 100, 2
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
FIRST = "base_model.model.model.layers.0.self_attn.q_proj."
MASK = [True, False, True, True]
WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, tuple[int, ...]]


def write_tensors(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        start, size = end, 4
        for length in shape:
            size *= length
        end = start + size
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


def plain(rank: int = 8) -> Tensors:
    """The factors of every linear module."""
    named = {f"model.layers.{n}.{kind}": shape for n in range(LAYERS) for kind, shape in SHAPES.items()}
    found: Tensors = {}
    for module, (outputs, inputs) in named.items():
        found[f"base_model.model.{module}.lora_A.weight"] = (rank, inputs)
        found[f"base_model.model.{module}.lora_B.weight"] = (outputs, rank)
    return found


def adalora() -> Tensors:
    """The same of AdaLoRA, whose names end without ``weight``."""
    factors = {name.removesuffix(".weight"): shape for name, shape in plain().items()}
    return factors | {name.replace("lora_A", "lora_E"): (8, 1) for name in factors if "lora_A" in name}


def renamed(old: str, new: str) -> Tensors:
    """The plain factors under other names."""
    return {name.replace(old, new): shape for name, shape in plain().items()}


def embedding(vocabulary: int) -> Tensors:
    """The factors of an adapted embedding."""
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    return {name + "A": (8, vocabulary), name + "B": (HIDDEN, 8)}


@dataclass(frozen=True)
class Case:
    """An adapter, and what is to be said of it.

    Attributes:
        config: what differs from a plain adapter's configuration; None is left out.
        tensors: the shapes in its file; None for no file.
        rules: whose findings are expected.
        loads: whether vLLM takes it.
        damage: done to the folder at the end.
    """

    rules: tuple[str, ...]
    loads: bool
    config: Mapping[str, Any] | None = None
    tensors: Tensors | None = None
    max_lora_rank: int = 16
    damage: Callable[[Path], object] | None = None


#: What vLLM decides while it reads configuration and weights.
CASES = {
    "plain": Case((), True),
    "rslora": Case((), True, {"use_rslora": True}),
    "patterns": Case((), True, {"rank_pattern": {"nothing": 4}, "alpha_pattern": {"q_proj": 4.5}}),
    "at the limit": Case((), True, {"r": 16}, plain(16)),
    "names without a prefix": Case((), True, None, renamed("base_model.model.", "")),
    "no configuration": Case(("adapter-files",), False, damage=lambda p: (p / "adapter_config.json").unlink()),
    "a list": Case(("adapter-files",), False, damage=lambda p: (p / "adapter_config.json").write_text("[]")),
    "half a configuration": Case(
        ("adapter-files",), False, damage=lambda p: (p / "adapter_config.json").write_text("{")
    ),
    "no weights": Case(("adapter-files",), False, damage=lambda p: (p / WEIGHTS).unlink()),
    "half the weights": Case(
        ("adapter-files",), False, damage=lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:5000])
    ),
    "no rank": Case(("adapter-config",), False, {"r": None}),
    "no alpha": Case(("adapter-config",), False, {"lora_alpha": None}),
    "no targets": Case(("adapter-config",), False, {"target_modules": None}),
    "a rank in words": Case(("adapter-config",), False, {"r": "eight"}),
    "an alpha in words": Case(("adapter-config",), False, {"lora_alpha": "eight"}),
    "rank 0": Case(("adapter-rank-zero", "adapter-tensor-ranks"), False, {"r": 0}),
    "pattern of 0": Case(("adapter-rank-zero", "adapter-tensor-ranks"), False, {"rank_pattern": {"q_proj": 0}}),
    "above the limit": Case(("adapter-rank-limit",), False, {"r": 32}, plain(32)),
    "within more room": Case((), True, {"r": 32}, plain(32), max_lora_rank=32),
    "a pattern above the limit": Case(("adapter-rank-limit",), False, {"rank_pattern": {"nothing": 17}}),
    "dora": Case(("adapter-dora", "adapter-tensors"), False, {"use_dora": True},
                 plain() | {FIRST + "lora_magnitude_vector": (HIDDEN,)}),
    "bias": Case(("adapter-bias",), False, {"bias": "all"}),
    "lora bias": Case(("adapter-bias", "adapter-tensors"), False, {"lora_bias": True},
                      plain() | {FIRST + "lora_B.bias": (HIDDEN,)}),
    "two reasons at once": Case(("adapter-rank-limit", "adapter-bias"), False, {"r": 32, "bias": "all"}, plain(32)),
    "modules to save": Case(("adapter-modules-to-save", "adapter-tensors"), False, {"modules_to_save": ["lm_head"]},
                            plain() | {"base_model.model.lm_head.weight": (VOCABULARY, HIDDEN)}),
    "pissa": Case(("adapter-init",), False, {"init_lora_weights": "pissa"}),
    "gaussian": Case((), True, {"init_lora_weights": "gaussian"}),
    "alora": Case(("adapter-variant",), False, {"alora_invocation_tokens": [1]}),
    "layers repeated": Case(("adapter-variant",), False, {"layer_replication": [[0, 2], [1, 2]]}),
    "bdlora": Case(("adapter-variant",), False, {"use_bdlora": {"nblocks": 2}}),
    "qalora": Case(("adapter-variant",), False, {"use_qalora": True}),
    "adalora": Case(("adapter-rank-zero", "adapter-tensors"), False,
                    {"peft_type": "ADALORA", "rank_pattern": {"layers.0.self_attn.q_proj.lora_E": MASK}}, adalora()),
    "adalora before its first pruning": Case(("adapter-tensors",), False, {"peft_type": "ADALORA"}, adalora()),
    "ia3": Case(("adapter-config", "adapter-tensors"), False, {"peft_type": "IA3", "r": None, "lora_alpha": None},
                {FIRST + "ia3_l": (HIDDEN, 1)}),
    "whole embeddings": Case(("adapter-tensors",), False, None,
                             plain() | {"base_model.model.model.embed_tokens.weight": (VOCABULARY, HIDDEN)}),
    "saved embeddings": Case(("adapter-embeddings",), True, None,
                             plain() | {"base_model.model.model.embed_tokens.base_layer.weight": (VOCABULARY, HIDDEN)}),
    "adapted head": Case((), True, None, plain() | {"base_model.model.lm_head.lora_A.weight": (8, HIDDEN),
                                                    "base_model.model.lm_head.lora_B.weight": (VOCABULARY, 8)}),
    "adapted embedding": Case((), True, None, plain() | embedding(VOCABULARY)),
    "embedding of another vocabulary": Case(("adapter-shapes",), False, None, plain() | embedding(VOCABULARY - 10)),
    "modules of another architecture": Case(("adapter-module-kinds",), False, None, renamed("o_proj", "dense")),
    "layers that the base lacks": Case(("adapter-modules",), True, None, renamed("layers.1.", "layers.7.")),
    "factors of another rank than stated": Case(("adapter-tensor-ranks",), True, {"r": 4}),
    "a smaller model's": Case(("adapter-shapes",), True, None, {n: (s[0], min(s[1], 32)) for n, s in plain().items()}),
    "only a pickle": Case(("adapter-pickle",), True, damage=lambda p: as_pickle(p)),
    "code beside": Case(("adapter-pickle",), True, damage=lambda p: (p / "modeling.py").write_text("print()")),
    "tokens": Case(("adapter-tokens",), True, damage=lambda p: write_tokenizer(p, extra=1)),
    "another base": Case(("adapter-base",), True, {"base_model_name_or_path": f"sha256:{'0' * 64}"}),
}  # fmt: skip

#: What it decides when it puts the weights into the model: no loader without a model knows of it.
LATER = {
    "half a pair": Case(
        ("adapter-pairs",), False, None, {n: s for n, s in plain().items() if n != FIRST + "lora_B.weight"}
    ),
    "factors above the limit": Case(("adapter-tensor-ranks",), False, None, plain(32)),
    "a larger model's": Case(
        ("adapter-shapes",), False, None, {n: (s[0], s[1] + 32 * ("lora_A" in n)) for n, s in plain().items()}
    ),
    "a saved head": Case(("adapter-head",), False, {"modules_to_save": ["score"]},
                         plain() | {"base_model.model.score.weight": (2, HIDDEN)}),
}  # fmt: skip


def as_pickle(folder: Path) -> None:
    from safetensors.torch import load_file

    torch = pytest.importorskip("torch")
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def write_tokenizer(folder: Path, *, extra: int = 0) -> None:
    vocabulary = {f"t{number}": number for number in range(VOCABULARY + extra)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of zeros."""
    folder = tmp_path_factory.mktemp("base")
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"model.layers.{n}.{kind}.weight": shape for n in range(LAYERS) for kind, shape in SHAPES.items()}
    write_tensors(folder / "model.safetensors", weights | {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)})
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    """A folder for each case."""
    from tunegate.contracts.manifest import input_digest

    named, place = f"sha256:{input_digest(base)}", tmp_path_factory.mktemp("adapters")
    for name, case in {**CASES, **LATER}.items():
        folder = place / name
        folder.mkdir()
        config = {**CONFIG, "base_model_name_or_path": named, **(case.config or {})}
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "adapter_config.json").write_text(json.dumps(kept))
        write_tensors(folder / WEIGHTS, plain() if case.tensors is None else case.tensors)
        if case.damage:
            case.damage(folder)
    return {name: place / name for name in {**CASES, **LATER}}


@pytest.mark.parametrize("name", [*CASES, *LATER])
def test_each_reason_is_found_and_none_that_is_not_there(name: str, adapters: dict[str, Path], base: Path) -> None:
    case = {**CASES, **LATER}[name]
    verdict = lint_adapter(adapters[name], base=base, max_lora_rank=case.max_lora_rank)
    assert tuple(dict.fromkeys(finding.rule for finding in verdict.linted.findings)) == case.rules
    assert verdict.loads == case.loads
    assert all(finding.remedy and finding.reference for finding in verdict.linted.findings)


#: Reads the folders with vLLM's own loader, with the names that it adapts in a Llama.
ORACLE = """
import json, sys, typing
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.models.llama import LlamaForCausalLM as Llama
expected = {"o_proj", "down_proj", *Llama.embedding_modules}
expected.update(name for packed in Llama.packed_modules_mapping.values() for name in packed)
said = {}
asked = json.load(sys.stdin)
for folder, rank in asked["adapters"]:
    try:
        helper = PEFTHelper.from_local_dir(folder, 64)
        helper.validate_legal(LoRAConfig(max_lora_rank=rank))
        LoRAModel.from_local_checkpoint(
            folder, expected, peft_helper=helper, device="cpu", model_vocab_size=asked["vocabulary"],
            weights_mapper=Llama.hf_to_vllm_mapper.get_rename_mapper(),
        )
        said[folder] = None
    except Exception as error:
        said[folder] = f"{type(error).__name__}: {error}"
ranks = {"served": typing.get_args(MaxLoRARanks), "default": LoRAConfig().max_lora_rank}
print("ORACLE" + json.dumps({"said": said, "ranks": ranks}))
"""


@pytest.fixture(scope="module")
def oracle(serve_python: Path, adapters: dict[str, Path]) -> Any:
    """What vLLM says of every case, asked once."""
    asked = [[str(adapters[name]), case.max_lora_rank] for name, case in CASES.items()]
    done = subprocess.run(
        [str(serve_python), "-c", ORACLE],
        input=json.dumps({"adapters": asked, "vocabulary": VOCABULARY}),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("ORACLE")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ORACLE"))


def test_the_verdict_is_vllms_own_in_every_case(oracle: Any, adapters: dict[str, Path]) -> None:
    assert {name: oracle["said"][str(adapters[name])] is None for name in CASES} == {
        name: case.loads for name, case in CASES.items()
    }


#: Refusals that are no sentence of vLLM's: a library's error below it, or a check that comes later here.
WORDLESS = {"no configuration", "a list", "half a configuration", "half the weights", "a rank in words",
            "an alpha in words", "embedding of another vocabulary"}  # fmt: skip


def test_a_refusal_is_told_in_vllms_words(oracle: Any, adapters: dict[str, Path], base: Path) -> None:
    for name in [name for name, case in CASES.items() if not case.loads and name not in WORDLESS]:
        room = CASES[name].max_lora_rank
        told = [finding.seen for finding in lint_adapter(adapters[name], base=base, max_lora_rank=room).linted.findings]
        heard = oracle["said"][str(adapters[name])]
        assert any(words(seen) in heard for seen in told), (name, told, heard)


def words(seen: str) -> str:
    """The part of a finding that is vLLM's."""
    if seen.startswith("expected target modules in"):
        return seen.partition("but received ")[2].partition(",")[0]
    if seen.startswith("Missing required configuration fields") and "," in seen:
        return "Missing required configuration fields"
    return seen.partition(" (")[0] if "unsupported LoRA weight" in seen else seen


def test_the_ranks_are_those_of_the_pinned_vllm(oracle: Any) -> None:
    assert (tuple(oracle["ranks"]["served"]), oracle["ranks"]["default"]) == (SERVED_RANKS, DEFAULT_SERVED_RANK)


def test_without_a_base_what_depends_on_it_is_named_as_not_checked(adapters: dict[str, Path]) -> None:
    verdict = lint_adapter(adapters["layers that the base lacks"])
    assert verdict.loads and not verdict.linted.findings
    assert {unchecked.rule for unchecked in verdict.linted.unchecked} == {
        "adapter-module-kinds", "adapter-modules", "adapter-shapes", "adapter-head", "adapter-base",
    }  # fmt: skip
    assert {unchecked.reason for unchecked in verdict.linted.unchecked} == {"no base was given"}


def test_an_adapter_that_names_no_digest_of_its_base_is_not_held_to_one(
    base: Path, adapters: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters["plain"], tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": "org/name"}))
    verdict = lint_adapter(folder, base=base)
    assert [unchecked.rule for unchecked in verdict.linted.unchecked] == ["adapter-base"]
    assert "'org/name'" in verdict.linted.unchecked[0].reason


def test_modules_of_an_unknown_architecture_are_not_judged(base: Path, adapters: Any, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "novel"}))
    verdict = lint_adapter(adapters["modules of another architecture"], base=other)
    assert verdict.loads
    assert {"adapter-module-kinds", "adapter-modules"} <= {unchecked.rule for unchecked in verdict.linted.unchecked}


def test_what_must_not_be_served_is_refused_with_what_to_do(adapters: dict[str, Path], base: Path) -> None:
    refuse_adapter(adapters["plain"], lint_adapter(adapters["plain"], base=base))
    refuse_adapter(adapters["code beside"], lint_adapter(adapters["code beside"], base=base))
    for name, said in (("above the limit", "does not load"), ("another base", "must not be served")):
        with pytest.raises(LintError, match=said) as caught:
            refuse_adapter(adapters[name], lint_adapter(adapters[name], base=base))
        assert caught.value.remedy


def test_the_remedy_for_a_large_rank_names_the_room_that_is_needed(adapters: dict[str, Path]) -> None:
    (found,) = lint_adapter(adapters["above the limit"]).linted.findings
    assert "--max-lora-rank 32" in found.remedy
    assert [smallest_served(rank) for rank in (1, 2, 17, 257, 321, 512, 513)] == [1, 8, 32, 320, 512, 512, None]


@pytest.mark.parametrize("given", [{"base": Path("absent")}, {"max_lora_rank": 20}, {"max_lora_rank": 0}])
def test_bad_input_is_no_verdict(given: Any, adapters: dict[str, Path]) -> None:
    with pytest.raises(InputError):
        lint_adapter(adapters["plain"], **given)


def test_no_folder_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter folder"):
        lint_adapter(tmp_path / "absent")


def test_the_readme_lists_every_rule_as_the_table_has_it() -> None:
    _, text = (Path(vllm_adapter.__file__).parent / "README.md").read_text("utf-8").split("## Will vLLM load")
    expected = [f"| `{rule.id}` | {rule.about} | {rule.reference} |" for rule in ADAPTER_RULES]
    assert [line for line in text.splitlines() if line.startswith("| `")] == expected


def test_every_rule_is_seen_to_speak() -> None:
    assert {rule for case in (*CASES.values(), *LATER.values()) for rule in case.rules} == {r.id for r in ADAPTER_RULES}
