"""The shapes of a decoder-only model, read out of its ``config.json``: what a plan needs, without loading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import ModelError

#: model_type → what its layers have beyond Llama's, and transformers' default where a config may leave it out.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"attention_bias": True, "output_bias": False},
    "qwen3": {"qk_norm": True, "head_dim": 128},
    "gemma": {"float_norm": True, "head_dim": 256},
    "gemma2": {"float_norm": True, "layer_norms": 4, "head_dim": 256},
    "gemma3_text": {"float_norm": True, "layer_norms": 4, "qk_norm": True, "head_dim": 256},
}

#: Keys that only a mixture of experts has.
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")

_TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class Linear:
    """A linear module of a decoder layer: ``outputs × inputs`` weights, and a bias or none."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def weights(self) -> int:
        """How many weights it has, the bias left out."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Widths and counts of a model whose layers are all alike.

    Attributes:
        qk_norm: whether queries and keys are normalised, head by head.
        layer_norms: how many norms of the hidden width a layer has.
        float_norm: whether a norm multiplies by its weight in float32 (Gemma) or after the cast back (Llama).
        softcap: whether logits pass through a tanh.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norms: int = 2
    float_norm: bool = False
    softcap: bool = False

    @property
    def query_width(self) -> int:
        """The width of all queries of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """The width of all keys of a token; so of the values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear modules of one layer, in the order in which they run."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return (
            Linear("q_proj", hidden, self.query_width, self.attention_bias),
            Linear("k_proj", hidden, self.key_width, self.attention_bias),
            Linear("v_proj", hidden, self.key_width, self.attention_bias),
            Linear("o_proj", self.query_width, hidden, self.output_bias),
            Linear("gate_proj", hidden, inner, self.mlp_bias),
            Linear("up_proj", hidden, inner, self.mlp_bias),
            Linear("down_proj", inner, hidden, self.mlp_bias),
        )

    @property
    def linear_weights(self) -> int:
        """Weights of the linear modules of all layers: what QLoRA holds in 4 bits."""
        return self.num_hidden_layers * sum(linear.weights for linear in self.linears)

    @property
    def layer_vectors(self) -> tuple[int, ...]:
        """The lengths of a layer's parameters that are no matrices: biases and norms."""
        biases = tuple(linear.outputs for linear in self.linears if linear.bias)
        heads = (self.head_dim, self.head_dim) if self.qk_norm else ()
        return (*biases, *heads, *(self.hidden_size for _ in range(self.layer_norms)))

    @property
    def embedding_weights(self) -> int:
        """Weights of one vocabulary matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def vocabulary_matrices(self) -> int:
        """The embedding, and the output head where it is not tied to it."""
        return 1 if self.tied else 2

    @property
    def parameters(self) -> int:
        """Every parameter, a tied head counted once."""
        vectors = self.num_hidden_layers * sum(self.layer_vectors) + self.hidden_size
        return self.linear_weights + vectors + self.vocabulary_matrices * self.embedding_weights


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Reads the shapes out of a ``config.json``.

    Args:
        config: the parsed document, as transformers writes it.

    Raises:
        ModelError: for an architecture that cannot be planned, or a config without the numbers that are needed.
    """
    model_type = str(config.get("model_type", ""))
    _refuse_experts(config, model_type)
    if model_type not in FAMILIES:
        raise _refused(f"model_type {model_type!r}" if model_type else "no model_type")
    family = FAMILIES[model_type]
    heads = _number(config, "num_attention_heads")
    hidden = _number(config, "hidden_size")
    attention_bias = bool(config.get("attention_bias", False))
    return ModelShape(
        model_type=model_type,
        hidden_size=hidden,
        num_hidden_layers=_number(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_number(config, "num_key_value_heads", heads if model_type == "llama" else None),
        head_dim=_number(config, "head_dim", family.get("head_dim", hidden // heads)),
        intermediate_size=_number(config, "intermediate_size"),
        vocab_size=_number(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)),
        attention_bias=family.get("attention_bias", attention_bias),
        output_bias=family.get("output_bias", attention_bias),
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.get("qk_norm", False),
        layer_norms=family.get("layer_norms", 2),
        float_norm=family.get("float_norm", False),
        softcap=bool(config.get("final_logit_softcapping")),
    )


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            "The model's config.json lacks a number that the memory plan needs.",
            seen=f"{key}: {value!r}",
            expected=f"{key} as a whole number above 0",
            remedy="give the config.json that lies beside the model's weights",
        )
    return value


def _refuse_experts(config: Mapping[str, Any], model_type: str) -> None:
    found = [key for key in _EXPERT_KEYS if config.get(key)]
    if found:
        raise _refused(f"a mixture of experts: model_type {model_type!r} with {found[0]} {config[found[0]]}")


def _refused(seen: str) -> ModelError:
    return ModelError(
        "The memory of this architecture is not planned.",
        seen=seen,
        expected=f"a text model of the type {', '.join(FAMILIES)}",
        remedy="plan a model of a known type with the same widths, and leave room: the numbers will differ",
    )
