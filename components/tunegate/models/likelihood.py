"""What a model says of each token of the probe rows: whole distributions, and the states of its layers.

One batch is in memory at a time, with logits of ``batch_size × (places from first to last scored token) × vocabulary``.
Whoever keeps the rows keeps ``scored tokens × (vocabulary + layers × hidden size) × 4`` bytes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunegate.contracts.errors import ModelError, RunError
from tunegate.models.probe import ProbeRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """One row, scored.

    Attributes:
        row: what was asked.
        log_probs: of the whole vocabulary before each scored token, float32 ``scored × vocabulary``.
        layers: the state behind each decoder layer at the same places, float32 ``layers × scored × hidden``; no layer
            when they were not asked for.
    """

    row: ProbeRow
    log_probs: Array
    layers: Array

    @property
    def token_losses(self) -> NDArray[np.float64]:
        """The loss of each scored token in nats, shape ``(scored,)``."""
        import numpy as np

        return -self.log_probs[np.arange(len(self.log_probs)), list(self.row.scored_ids)].astype(np.float64)


def score(model: Any, rows: Sequence[ProbeRow], *, batch_size: int, with_layers: bool = False) -> Iterator[Scored]:
    """Asks a model for the tokens of each row, in the order of the rows.

    Args:
        model: a causal language model, or PEFT's adapter on one.
        rows: what to ask.
        batch_size: rows that are computed together, padded on the right.
        with_layers: whether the states of the layers are wanted as well.

    Raises:
        RunError: when the model gives values that are not finite.
        ModelError: when its decoder layers are wanted and cannot be found.
    """
    layers = list(decoder_layers(model).values()) if with_layers else []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with _states(layers) as states:
            logits, first = _logits(model, batch)
        for place, row in enumerate(batch):
            yield _scored(row, logits[place], first, [state[place] for state in states])


def token_kl(reference: Array, candidate: Array) -> NDArray[np.float64]:
    """KL(reference ‖ candidate) of each token in nats: ``tokens × vocabulary`` log-probabilities → ``(tokens,)``.

    Both are normalized anew in float64: float32's rounding of a large vocabulary is of the size of what is measured.
    """
    import numpy as np
    from scipy.special import log_softmax

    p, q = (log_softmax(values.astype(np.float64), axis=-1) for values in (reference, candidate))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def decoder_layers(model: Any) -> dict[str, Any]:
    """The decoder layers by their names in the model, in order: the outermost list of as many modules as it has layers.

    Raises:
        ModelError: when there is none.
    """
    import torch

    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return {f"{name}.{place}": layer for place, layer in enumerate(module)}
    raise ModelError(
        f"The layers of {type(model).__name__} cannot be found.",
        seen=f"no list of {count} modules",
        expected="a decoder whose layers stand in one list, as transformers' own models have it",
        remedy="leave the step out that compares layers, and report this with the model's config.json",
    )


@contextlib.contextmanager
def _states(layers: Sequence[Any]) -> Iterator[list[Any]]:
    """Collects what each layer puts out, ``batch × tokens × hidden``, while it lasts."""
    states: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _logits(model: Any, batch: Sequence[ProbeRow]) -> tuple[Any, int]:
    """Logits at the places that predict a scored token of any row of the batch, and the first of these places."""
    import torch

    longest = max(len(row.token_ids) for row in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(batch):
        ids[place, : len(row.token_ids)] = torch.tensor(row.token_ids)
        mask[place, : len(row.token_ids)] = 1
    device = next(model.parameters()).device
    first = min(row.start for row in batch) - 1
    kept = torch.arange(first, longest - 1, device=device)
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    fewer: Mapping[str, Any] = {"logits_to_keep": kept} if "logits_to_keep" in _parameters(core) else {}
    with torch.no_grad():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **fewer).logits
    return (logits if fewer else logits[:, kept]), first


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _scored(row: ProbeRow, logits: Any, first: int, states: Sequence[Any]) -> Scored:
    import numpy as np
    import torch

    places = slice(row.start - 1, len(row.token_ids) - 1)
    log_probs = logits[places.start - first : places.stop - first].float().log_softmax(-1)
    if not bool(torch.isfinite(log_probs).all()):
        raise RunError(
            f"The model gives no probabilities for row {row.row_id}.",
            seen="infinite logits, or logits that are no number",
            expected="finite logits",
            remedy="look for weights that are not finite; with float16, try bfloat16 or float32",
        )
    kept = [state[places].float().cpu().numpy() for state in states]
    layers = np.stack(kept) if kept else np.zeros((0, len(row.scored_ids), 0), np.float32)
    return Scored(row, log_probs.cpu().numpy(), layers)
