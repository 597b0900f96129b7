"""Figures published for fine-tuning Llama 3, beside the plan for the same run, and why they differ.

They are claims to compare with. The table says AdamW, batches of 4 rows of 4096 tokens, and rank 16, but not in which
dtypes, and not whether activations are kept; what is said of that here is arithmetic, or marked as a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.preflight.known_models import known_config
from tunegate.preflight.memory import MemoryPlan, gigabytes, plan
from tunegate.preflight.precision import FLOAT32

METHODS = ("full", "lora", "qlora", "adalora")

#: Model → (its parameters as the table rounds them, method → GB).
PUBLISHED: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "llama-3-8b": (8 * 10**9, {"full": 160, "lora": 26, "qlora": 9, "adalora": 27}),
    "llama-3-70b": (70 * 10**9, {"full": 1400, "lora": 185, "qlora": 48, "adalora": 190}),
    "llama-3.1-405b": (405 * 10**9, {"full": 8100, "lora": 980, "qlora": 270, "adalora": 1020}),
}

#: The run that the table is about, as settings of ``train``.
CONDITIONS: Mapping[str, Any] = {"per_device_train_batch_size": 4, "max_length": 4096, "r": 16}

#: Bytes that AdamW takes for a trained parameter, gradient included and weight included where it is held a second time,
#: by convention: "mixed" counts a 16-bit gradient and weight beside 32-bit moments (2 + 2 + 4 + 4), "float32" what
#: PEFT's float32 adapters really take (4 + 4 + 4 + 4), "bfloat16" everything in 16 bits (2 + 2 + 2 + 2).
CONVENTIONS = {"mixed": 12, "float32": 16, "bfloat16": 8}

#: A difference below this share of the published figure is called none.
_ALIKE = 0.1


@dataclass(frozen=True)
class Comparison:
    """One cell of the table.

    Attributes:
        method: how it is trained.
        published_bytes: what was published.
        recomputed: our plan, activations computed twice.
        kept: our plan, activations kept.
        why: where the difference to ``recomputed`` comes from.
    """

    method: str
    published_bytes: int
    recomputed: MemoryPlan
    kept: MemoryPlan
    why: str


def adapter_convention(parameters: int, share: float, convention: str) -> int:
    """Bytes of a frozen 16-bit base with an adapter of ``share`` of its size, activations left out.

    Args:
        parameters: of the base.
        share: of them that train.
        convention: one of ``CONVENTIONS``.
    """
    return round(parameters * 2 + parameters * share * CONVENTIONS[convention])


def compare(model: str, settings: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> tuple[Comparison, ...]:
    """The published figures of a model beside our plans under the same conditions.

    Args:
        model: one of ``PUBLISHED``.
        settings: makes every setting of ``train`` from the few that are given.

    Returns:
        A comparison for each method, in the order of the table.
    """
    config = known_config(model)
    rounded, figures = PUBLISHED[model]
    found = []
    for method in METHODS:
        train = settings({**CONDITIONS, "method": method})
        recomputed = plan(config, train, gradient_checkpointing=True)
        published = figures[method] * 10**9
        found.append(
            Comparison(
                method=method,
                published_bytes=published,
                recomputed=recomputed,
                kept=plan(config, train, gradient_checkpointing=False),
                why=_full(published, rounded, recomputed)
                if method == "full"
                else _adapter(published, recomputed, config),
            )
        )
    return tuple(found)


def _full(published: int, rounded: int, planned: MemoryPlan) -> str:
    each, states = published // rounded, CONVENTIONS["float32"] * planned.parameters
    bfloat16 = CONVENTIONS["bfloat16"]
    return (
        f"published: {each} B for each of {rounded // 10**9}·10⁹ parameters, whatever the tokens; planned: weights, "
        f"gradients and two moments in float32, {CONVENTIONS['float32']} B, {gigabytes(states)}, and the activations; "
        f"with dtype bfloat16 the former are {bfloat16} B, {gigabytes(bfloat16 * planned.parameters)}"
    )


def _adapter(published: int, planned: MemoryPlan, config: Mapping[str, Any]) -> str:
    passing = sum(part.bytes for part in planned.components if part.name in ("activations", "workspace", "logits"))
    held = planned.peak_bytes - passing
    left = published - held
    if abs(published - planned.peak_bytes) <= _ALIKE * published:
        return f"alike: weights and states take {gigabytes(held)}, activations computed twice {gigabytes(passing)}"
    room = f"published leaves {gigabytes(left)} for" if left > 0 else "published is less than that, and has no room for"
    return (
        f"weights and states take {gigabytes(held)}; {room} the activations and workspaces of {planned.tokens:,} "
        f"tokens, which take {gigabytes(passing)} even when they are computed twice; their logits at once, which train "
        f"does not make, would be {gigabytes(planned.tokens * config['vocab_size'] * FLOAT32)} more"
    )
