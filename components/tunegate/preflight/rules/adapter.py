"""Rules on the adapter: its scale, its places, and who can load it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunegate.contracts.vllm import SERVED_RANK
from tunegate.preflight.precision import ADAPTERS
from tunegate.preflight.rule import Context, Remark, Sections
from tunegate.preflight.trainable import ALL_LINEAR

#: The two published recommendations for lora_alpha: twice the rank, and one value for every rank.
USUAL_RATIO, USUAL_ALPHA = 2.0, 16

#: How many times a recommendation may be missed before it counts as missed far.
FAR = 4.0

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "c_attn", "query_key_value")
_VOCABULARY = ("embed_tokens", "lm_head")


def trains_adapter(sections: Sections) -> bool:
    """For rules on adapters of any kind."""
    return sections["train"]["method"] in ADAPTERS


def scaled_by_ratio(sections: Sections) -> bool:
    """For rules on the scale lora_alpha / r; AdaLoRA's and rsLoRA's are others."""
    train = sections["train"]
    return train["method"] in ("lora", "qlora") and not train["use_rslora"]


def scaled_by_root(sections: Sections) -> bool:
    """For rules on rsLoRA's scale, lora_alpha / √r."""
    train = sections["train"]
    return train["method"] in ("lora", "qlora") and bool(train["use_rslora"])


def names_modules(sections: Sections) -> bool:
    """For rules on modules that are named one by one."""
    return trains_adapter(sections) and list(sections["train"]["target_modules"]) != [ALL_LINEAR]


def names_vocabulary(sections: Sections) -> bool:
    """For rules on adapters at either end of the model."""
    return names_modules(sections) and any(name in _VOCABULARY for name in _targets(sections["train"]))


def alpha_equals_r(context: Context) -> Iterator[Remark]:
    """A scale of 1: most often r was raised and alpha forgotten."""
    alpha, r = context.of("train")["lora_alpha"], context.of("train")["r"]
    if alpha == r:
        yield Remark(
            "warning",
            f"train.lora_alpha {alpha} equals r, so the update is scaled by 1; the usual ratio is {USUAL_RATIO:g}",
            f"set lora_alpha to {USUAL_RATIO * r:g}, or keep it constant while you vary r",
        )


def alpha_ratio(context: Context) -> Iterator[Remark]:
    """A scale that neither recommendation comes near to. Alpha and the learning rate make up for each other."""
    alpha, r = context.of("train")["lora_alpha"], context.of("train")["r"]
    if alpha != r and _far(alpha / r, USUAL_RATIO) and _far(alpha, USUAL_ALPHA):
        yield Remark(
            "warning",
            f"train.lora_alpha {alpha} is {alpha / r:g} times r; recommended are {USUAL_RATIO:g} times r, or "
            f"{USUAL_ALPHA} for every r",
            f"set lora_alpha to {USUAL_RATIO * r:g} or to {USUAL_ALPHA}; a stronger update comes from learning_rate",
        )


def rslora_scale(context: Context) -> Iterator[Remark]:
    """An alpha that was chosen for alpha / r: divided by √r it is many times too strong, the more so at a high rank."""
    alpha, r = context.of("train")["lora_alpha"], context.of("train")["r"]
    scale = alpha / math.sqrt(r)
    if _far(scale, USUAL_RATIO):
        yield Remark(
            "warning",
            f"train.lora_alpha {alpha} with use_rslora: the update is scaled by lora_alpha / √r = {scale:.3g}, and by "
            f"{alpha / r:.3g} without; the usual scale is {USUAL_RATIO:g}",
            f"set lora_alpha to {round(USUAL_RATIO * math.sqrt(r))}, twice √r",
        )


def attention_only(context: Context) -> Iterator[Remark]:
    """No MLP layer adapted."""
    targets = context.of("train")["target_modules"]
    if targets and all(name in _ATTENTION for name in _targets(context.of("train"))):
        yield Remark(
            "warning",
            f"train.target_modules {', '.join(targets)}: no MLP layer is adapted",
            f"use ['{ALL_LINEAR}']: adapting every linear layer is what reaches full fine-tuning",
        )


def tied_embeddings(context: Context) -> Iterator[Remark]:
    """An adapter on one of two layers that are one weight: train refuses it, and PEFT would lose one on reload."""
    named = [name for name in _targets(context.of("train")) if name in _VOCABULARY]
    if context.shape.tied:
        yield Remark(
            "error",
            f"train.target_modules names {', '.join(named)}, and the base ties both ends of the model to one weight",
            f"leave {' and '.join(named)} out, or use ['{ALL_LINEAR}'], which does",
        )


def unknown_target(context: Context) -> Iterator[Remark]:
    """A module that the base does not have; train would refuse it on the GPU."""
    shape = context.shape
    known = {linear.name for linear in shape.linears}
    elsewhere = _VOCABULARY if shape.tied else ("lm_head",)  # at tied ends the rule tied-embeddings speaks
    unknown = [name for name in _targets(context.of("train")) if name not in known and name not in elsewhere]
    if unknown:
        yield Remark(
            "error",
            f"train.target_modules names {', '.join(unknown)}, which is no linear module of a {shape.model_type} model",
            f"use ['{ALL_LINEAR}'], or names of {', '.join(sorted(known))}",
        )


def serving_adapter(context: Context) -> Iterator[Remark]:
    """An adapter that the serving engine cannot load by itself."""
    train = context.of("train")
    if train["method"] == "adalora":
        seen = "train.method adalora: vLLM knows adapters of two factors and equal names, and AdaLoRA's has three"
        remedy = "serve the merged or the quantized model; `tunegate export` makes LoRA of the adapter"
    elif train["r"] > SERVED_RANK:
        seen = f"train.r {train['r']}: vLLM loads adapters up to rank {SERVED_RANK}"
        remedy = (
            f"serve the merged or the quantized model, lower r to {SERVED_RANK}, or cut the adapter to it afterwards "
            "with `tunegate export`"
        )
    else:
        return
    yield Remark("warning", seen, remedy)


def _far(value: float, usual: float) -> bool:
    return value > usual * FAR or value < usual / FAR


def _targets(train: Mapping[str, Any]) -> list[str]:
    """Last parts of the names: ``self_attn.q_proj`` is a q_proj."""
    return [str(target).rpartition(".")[2] for target in train["target_modules"]]
