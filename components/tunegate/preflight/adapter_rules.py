"""Why vLLM refuses an adapter, in its own words, and what it serves otherwise than it was trained.

Read in vllm/lora/{peft_helper,lora_model,utils}.py and vllm/lora/layers of the pinned version; the tests hold each rule
against that code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tunegate.contracts.vllm import SERVED_RANK, VLLM, smallest_served
from tunegate.preflight.adapter_folder import (
    PICKLED_WEIGHTS,
    WEIGHTS_NAME,
    AdapterFolder,
    CannotTell,
    Factor,
    pattern_value,
)

#: ``refused``: vLLM does not load it. ``wrong``: it loads and must not be served, most often because it then answers
#: otherwise than what was trained. ``note``: it loads, and something about it should be known.
Outcome = Literal["refused", "wrong", "note"]

_MERGE = "merge the adapter and serve the merged model"
_EXPORT = "make it plain LoRA with `tunegate export`"

#: Initialisations with which a saved adapter is still plain LoRA; the others change the base (peft_helper.py).
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

#: The whole heads that vLLM takes, of classification models.
_HEADS = ("classifier", "score")

#: The model types, of those whose modules are known here, at whose ends vLLM takes adapters (``embedding_modules``).
_ADAPTED_ENDS = ("llama", "qwen3")
_ENDS = ("embed_tokens", "lm_head")

#: Embeddings saved whole, which vLLM passes over.
_SAVED_EMBEDDINGS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CODE = (".py", ".so")


@dataclass(frozen=True)
class Reason:
    """What a rule says: what becomes of the adapter, what was seen (vLLM's own words where it refuses), what to do."""

    outcome: Outcome
    seen: str
    remedy: str


@dataclass(frozen=True)
class AdapterRule:
    """One line of the table: ``find`` raises :class:`CannotTell` where it cannot look."""

    id: str
    about: str
    find: Callable[[AdapterFolder], Iterator[Reason]]
    reference: str


def files(adapter: AdapterFolder) -> Iterator[Reason]:
    """Configuration or weights that are absent or damaged."""
    if isinstance(adapter.config_or_why, str):
        yield Reason("refused", adapter.config_or_why, "check the adapter's path, or save the adapter again")
    pickled = any((adapter.folder / name).is_file() for name in PICKLED_WEIGHTS)
    if isinstance(adapter.shapes_or_why, str) and ((adapter.folder / WEIGHTS_NAME).is_file() or not pickled):
        yield Reason("refused", adapter.shapes_or_why, f"save the adapter again, as {WEIGHTS_NAME}")


def pickles(adapter: AdapterFolder) -> Iterator[Reason]:
    """Files that can run code when they are opened."""
    if not (adapter.folder / WEIGHTS_NAME).is_file():
        for name in (name for name in PICKLED_WEIGHTS if (adapter.folder / name).is_file()):
            seen = f"the weights are in {name}, a pickle: vLLM opens it, and pickles can run code"
            yield Reason("wrong", seen, "save the adapter with save_pretrained(safe_serialization=True)")
            return
    beside = [path.name for path in sorted(adapter.folder.iterdir()) if path.suffix in (*_PICKLES, *_CODE)]
    if beside:
        yield Reason("note", f"{', '.join(beside)}: pickles or code beside the weights", "remove what is not needed")


def required_fields(adapter: AdapterFolder) -> Iterator[Reason]:
    """A configuration that is not one of LoRA."""
    missing = [name for name in ("r", "lora_alpha", "target_modules") if name not in adapter.config]
    remedy = f"save the adapter with PEFT's LoraConfig; for another kind of adapter: {_MERGE}"
    if missing:
        names = ", ".join(repr(name) for name in missing)
        yield Reason("refused", f"Missing required configuration fields: {{{names}}}", remedy)
        return
    for name in ("r", "lora_alpha"):
        if not isinstance(adapter.config[name], int | float):
            yield Reason("refused", f"{name} is {adapter.config[name]!r}, which is no number", remedy)


def rank_of_zero(adapter: AdapterFolder) -> Iterator[Reason]:
    """Ranks that are no positive number: pruned to nothing, or AdaLoRA's masks."""
    rank = adapter.config.get("r")
    if isinstance(rank, int | float) and rank <= 0:
        yield Reason("refused", f"LoRA rank `r` must be a positive integer, got {rank}.", _EXPORT)
    for name, value in _patterns(adapter, "rank_pattern").items():
        if not isinstance(value, int) or value <= 0:
            seen = f"LoRA rank for `{name}` in `rank_pattern` must be a positive integer, got {value}."
            yield Reason("refused", seen, f"{_EXPORT}: padded with zeros it is the same")
            return


def rank_limit(adapter: AdapterFolder) -> Iterator[Reason]:
    """A rank for which the server has no room."""
    ranks = [adapter.config.get("r"), *_patterns(adapter, "rank_pattern").values()]
    numbers = [rank for rank in ranks if isinstance(rank, int)]
    largest = max(numbers, default=0)
    if len(numbers) == len(ranks) and largest > adapter.max_lora_rank:
        seen = f"LoRA rank {largest} is greater than max_lora_rank {adapter.max_lora_rank}."
        yield Reason("refused", seen, _more_room(adapter, largest))


def dora(adapter: AdapterFolder) -> Iterator[Reason]:
    """Weight decomposition."""
    if adapter.config.get("use_dora"):
        yield Reason("refused", "vLLM does not yet support DoRA.", _MERGE)


def bias(adapter: AdapterFolder) -> Iterator[Reason]:
    """Trained biases."""
    if adapter.config.get("lora_bias"):
        yield Reason("refused", "vLLM does not support LoRA bias (lora_bias).", _MERGE)
    if adapter.config.get("bias", "none") != "none":
        yield Reason("refused", "Adapter bias is not supported.", f"{_MERGE}; or train with bias: none")


def modules_to_save(adapter: AdapterFolder) -> Iterator[Reason]:
    """Whole modules beside the factors."""
    named = adapter.config.get("modules_to_save") or []
    unsupported = [name for name in named if name not in _HEADS]
    if unsupported:
        yield Reason("refused", f"Unsupported modules_to_save: {unsupported}", _MERGE)


def saved_head(adapter: AdapterFolder) -> Iterator[Reason]:
    """A classification head for a model that has none."""
    named = adapter.config.get("modules_to_save") or []
    heads = {factor.module for factor in adapter.factors.values() if factor.kind == "head"}
    kinds = adapter.base.config.get("architectures") or []
    if kinds and all(str(kind).endswith("ForCausalLM") for kind in kinds):
        for head in sorted(heads.intersection(named)):
            seen = f"Cannot load full module {head!r}: the model does not expose a unique ClassificationHeadWithLoRA."
            yield Reason("refused", seen, f"train without modules_to_save, or {_MERGE}")


def initialisation(adapter: AdapterFolder) -> Iterator[Reason]:
    """An initialisation that changed the base."""
    init = adapter.config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        seen = f"vLLM does not support init_lora_weights={init!r}."
        yield Reason("refused", seen, "convert it with PEFT's path_initial_model_for_weight_conversion")


def variants(adapter: AdapterFolder) -> Iterator[Reason]:
    """Other kinds of LoRA."""
    said = {
        "alora_invocation_tokens": "vLLM does not support Activated LoRA (aLoRA).",
        "layer_replication": "vLLM does not support layer_replication.",
        "use_bdlora": "vLLM does not support block-diagonal LoRA (BD-LoRA).",
        "use_qalora": "vLLM does not support QALoRA.",
    }
    for name, seen in said.items():
        if adapter.config.get(name):
            yield Reason("refused", seen, f"train without {name}")


def tensor_names(adapter: AdapterFolder) -> Iterator[Reason]:
    """Tensors that are no factor A or B: AdaLoRA's, DoRA's magnitudes, whole modules."""
    known = adapter.factors
    strange = sorted(name for name in adapter.shapes.keys() - known.keys() if not name.endswith(_SAVED_EMBEDDINGS))
    if strange:
        adaptive = any(name.endswith(".lora_E") for name in strange)
        more = f" ({len(strange) - 1} more)" if len(strange) > 1 else ""
        first = strange[0].removeprefix("base_model.model.")
        yield Reason("refused", f"{first} is unsupported LoRA weight{more}", _EXPORT if adaptive else _MERGE)


def half_pairs(adapter: AdapterFolder) -> Iterator[Reason]:
    """A factor whose other half is missing."""
    found: dict[str, set[str]] = {}
    for factor in adapter.factors.values():
        if factor.kind != "head":
            found.setdefault(factor.module, set()).add(factor.kind[-1])
    halves = [f"lora_{min(kinds)} of {module}" for module, kinds in found.items() if len(kinds) == 1]
    if halves:
        yield Reason("refused", f"without their other half: {_listed(halves)}", "save the adapter again")


def tensor_ranks(adapter: AdapterFolder) -> Iterator[Reason]:
    """Factors of another rank than the configuration says: vLLM scales by the rank that is said."""
    config, patterns = adapter.config, _patterns(adapter, "rank_pattern")
    large, other = [], []
    for name, factor in adapter.factors.items():
        rank, stated = _rank(factor, adapter.shapes[name]), pattern_value(patterns, factor.module, config.get("r"))
        if rank is None or not isinstance(stated, int):
            continue
        if rank > adapter.max_lora_rank:
            large.append(f"{factor.module}: {rank}")
        elif rank != stated:
            other.append(f"{factor.module}: {rank}, stated {stated}")
    if large and not list(rank_limit(adapter)):
        largest = max(int(item.rpartition(" ")[2]) for item in large)
        seen = f"factors of a larger rank than max_lora_rank {adapter.max_lora_rank}: {_listed(large)}"
        yield Reason("refused", seen, _more_room(adapter, largest))
    if other:
        seen = f"factors of another rank than adapter_config.json says, so vLLM scales them wrongly: {_listed(other)}"
        yield Reason("wrong", seen, "restore the adapter_config.json that was saved with the weights")


def module_kinds(adapter: AdapterFolder) -> Iterator[Reason]:
    """Modules of a kind that vLLM adapts in no layer of this base."""
    shape, saved = adapter.base.shape, adapter.config.get("modules_to_save") or []
    ends = _ENDS if shape.model_type in _ADAPTED_ENDS else ()
    expected = {linear.name for linear in shape.linears}.union(ends)
    named = sorted({factor.module for factor in adapter.factors.values()})
    strange = [name for name in named if _kind(name) not in expected and _kind(name) not in saved]
    if strange:
        seen = f"expected target modules in {', '.join(sorted(expected))} but received {_listed(strange)}"
        yield Reason("refused", seen, f"give the base that the adapter was trained on; or {_MERGE}")


def modules(adapter: AdapterFolder) -> Iterator[Reason]:
    """Modules that this base does not have: vLLM looks at the last part of a name only, and passes over the rest."""
    present, saved = adapter.base.modules, adapter.config.get("modules_to_save") or []
    named = sorted({factor.module for factor in adapter.factors.values() if factor.kind != "head"})
    known = {_kind(name) for name in present}
    absent = [name for name in named if name not in present and _kind(name) in known and name not in saved]
    if absent:
        seen = f"{len(absent)} of {len(named)} modules are not in this base, and vLLM drops them: {_listed(absent)}"
        yield Reason("wrong", seen, "give the base that the adapter was trained on")


def shapes(adapter: AdapterFolder) -> Iterator[Reason]:
    """Factors that do not fit their module: vLLM fails at larger ones, and fills a part with smaller ones."""
    base = adapter.base
    larger: list[str] = []
    smaller: list[str] = []
    for name, factor in adapter.factors.items():
        has, fits = _width(factor, adapter.shapes[name]), _base_width(base.shapes, factor)
        if has is None or fits is None or has == fits:
            continue
        exact = factor.kind == "embedding_A"  # the one size that vLLM compares
        (larger if has > fits or exact else smaller).append(f"{factor.module} {factor.kind}: {has}, base {fits}")
    remedy = "give the base that the adapter was trained on"
    if larger:
        yield Reason("refused", f"factors that are too large for this base: {_listed(larger)}", remedy)
    if smaller:
        yield Reason("wrong", f"factors that are too small, which vLLM fills in as a part: {_listed(smaller)}", remedy)


def base_bytes(adapter: AdapterFolder) -> Iterator[Reason]:
    """Another base than the one that it was trained on."""
    stated, given = adapter.base_digest, adapter.base.digest
    if stated != given:
        seen = f"trained on base {stated[:12]}, to be served on {given[:12]}"
        yield Reason("wrong", seen, "serve it on the base that it was trained on: the same files, byte for byte")


def saved_embeddings(adapter: AdapterFolder) -> Iterator[Reason]:
    """Embeddings saved with the adapter, which vLLM passes over."""
    saved = [name for name in adapter.shapes if name.endswith(_SAVED_EMBEDDINGS)]
    if saved:
        seen = f"embeddings beside the factors, which vLLM passes over: {_listed(saved)}"
        yield Reason("wrong", seen, f"{_MERGE}; or save with save_embedding_layers=False if they were not trained")


def added_tokens(adapter: AdapterFolder) -> Iterator[Reason]:
    """Tokens that the base has not, or has under other numbers."""
    own = adapter.vocabulary
    if own is None:
        return
    size, known = int(adapter.base.config.get("vocab_size") or 0), adapter.base.vocabulary
    other = [token for token, number in own.items() if known.get(token) != number or (size and number >= size)]
    if other:
        seen = f"{len(other)} token(s) that the served base does not have: {_listed([repr(token) for token in other])}"
        yield Reason("wrong", seen, f"{_MERGE}: vLLM serves every adapter with the base's vocabulary")


def _patterns(adapter: AdapterFolder, name: str) -> dict[str, Any]:
    patterns = adapter.config.get(name) or {}
    if not isinstance(patterns, dict):
        raise CannotTell(f"{name} is {type(patterns).__name__}")
    return patterns


def _more_room(adapter: AdapterFolder, rank: int) -> str:
    room = smallest_served(rank)
    start = f"start vLLM with --max-lora-rank {room}" if room else f"{VLLM} has room for {SERVED_RANK} at most"
    return f"{start}; or cut it with `tunegate export --reduce-rank-to {adapter.max_lora_rank}`, which says the loss"


def _rank(factor: Factor, shape: tuple[int, ...]) -> int | None:
    if len(shape) != 2 or factor.kind == "head":
        return None
    return shape[0] if factor.kind.endswith("A") else shape[1]


def _width(factor: Factor, shape: tuple[int, ...]) -> int | None:
    """The length that the base decides: inputs of A, outputs of B."""
    if len(shape) != 2 or factor.kind == "head":
        return None
    return shape[1] if factor.kind.endswith("A") else shape[0]


def _base_width(base: Any, factor: Factor) -> int | None:
    """The same length of the base's weight, ``out × in``, or ``vocabulary × hidden`` of an embedding."""
    weight = base.get(f"{factor.module}.weight")
    if weight is None or len(weight) != 2:
        return None
    outputs, inputs = reversed(weight) if factor.kind.startswith("embedding") else weight
    return int(inputs if factor.kind.endswith("A") else outputs)


def _kind(module: str) -> str:
    return module.rpartition(".")[2]


def _listed(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


_HELPER, _MODEL = f"{VLLM}, lora/peft_helper.py", f"{VLLM}, lora/lora_model.py"

ADAPTER_RULES: tuple[AdapterRule, ...] = (
    AdapterRule("adapter-files", "a configuration or weights that cannot be read", files, _MODEL),
    AdapterRule("adapter-pickle", "weights in a pickle, or code beside them", pickles, _MODEL),
    AdapterRule("adapter-config", "a configuration without LoRA's fields", required_fields, _HELPER),
    AdapterRule("adapter-rank-zero", "a rank of 0, or AdaLoRA's masks for ranks", rank_of_zero, _HELPER),
    AdapterRule("adapter-rank-limit", "a rank above the server's max_lora_rank", rank_limit, _HELPER),
    AdapterRule("adapter-dora", "DoRA", dora, _HELPER),
    AdapterRule("adapter-bias", "trained biases", bias, _HELPER),
    AdapterRule("adapter-modules-to-save", "whole modules in modules_to_save", modules_to_save, _HELPER),
    AdapterRule("adapter-init", "an initialisation that changed the base", initialisation, _HELPER),
    AdapterRule("adapter-variant", "aLoRA, BD-LoRA, QALoRA or replicated layers", variants, _HELPER),
    AdapterRule("adapter-tensors", "tensors that are no factor A or B", tensor_names, f"{VLLM}, lora/utils.py"),
    AdapterRule("adapter-pairs", "half a pair of factors", half_pairs, f"{VLLM}, lora/lora_weights.py"),
    AdapterRule("adapter-tensor-ranks", "factors of another rank than stated", tensor_ranks, _MODEL),
    AdapterRule("adapter-module-kinds", "modules that are adapted in no layer", module_kinds, _MODEL),
    AdapterRule("adapter-modules", "modules that the base does not have", modules, f"{VLLM}, lora/model_manager.py"),
    AdapterRule("adapter-shapes", "factors that do not fit the base's weights", shapes, f"{VLLM}, lora/layers"),
    AdapterRule(
        "adapter-head", "a classification head for a causal model", saved_head, f"{VLLM}, lora/model_manager.py"
    ),
    AdapterRule("adapter-base", "another base than it was trained on", base_bytes, "train/README.md"),
    AdapterRule("adapter-embeddings", "embeddings saved beside the factors", saved_embeddings, _MODEL),
    AdapterRule(
        "adapter-tokens", "tokens that the base does not have", added_tokens, f"{VLLM}, lora/worker_manager.py"
    ),
)
