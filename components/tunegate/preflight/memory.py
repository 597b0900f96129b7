"""The memory plan: what training holds at its most, part by part, before any device is taken.

A training step has a few moments at which memory can be at its peak. For each of them the plan adds up what is held
then; the largest sum is the peak. Every number follows from shapes, dtypes and the way ``train`` works; three are
assumptions and say so: what the process itself takes, what lies unused between tensors on a CPU, and the share of a
device that can be filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.preflight import activations
from tunegate.preflight.activations import Layout
from tunegate.preflight.base_weights import BaseWeights, nf4_weights, plain_weights
from tunegate.preflight.logits import HeadMemory, head_memory
from tunegate.preflight.model_shape import ModelShape, model_shape
from tunegate.preflight.optimizers import FUSED, PAGED, OptimizerMemory, optimizer_memory
from tunegate.preflight.precision import FLOAT32, Precision, precision
from tunegate.preflight.trainable import Tensors, adapted_linears, elements, rank, trainable_tensors

#: What a process holds before it has a model: CUDA's context and cuBLAS's workspace; Python and its libraries.
RUNTIME_BYTES = {"cuda": 500_000_000, "cpu": 640_000_000}

#: The share of a device that a plan may fill: the allocator's gaps between batches of different lengths need the rest.
USABLE_SHARE = 0.9

#: What lies unused between tensors on a CPU, for each byte that linear modules give out in a pass: the C library's heap
#: (glibc 2.36) does not reuse the place of most temporaries. Measured as resident memory beyond the plan, on 6 to 30
#: layers: 1.4 to 2.2 with adapters, which make four outputs where a linear makes one, 0.5 to 1.0 without.
GAPS_WITH_ADAPTER, GAPS_WITHOUT = 1.7, 0.75

#: Running averages that AdaLoRA's allocator keeps of every adapter parameter: sensitivity, its mean, its uncertainty.
_AVERAGES = 3


@dataclass(frozen=True)
class Component:
    """A part of the memory that is held at the peak.

    Attributes:
        name: what it is.
        bytes: how much.
        explanation: the arithmetic, in one line.
    """

    name: str
    bytes: int
    explanation: str


@dataclass(frozen=True)
class MemoryPlan:
    """What a run holds at its most.

    Attributes:
        components: at the moment of the peak; those without a byte are left out.
        peak_bytes: their sum.
        phase: the moment of the peak.
        phases: every moment that was planned → the bytes held then.
        parameters: of the base model.
        trainable_parameters: that have gradients.
        tokens: of the batch that was planned.
        gradient_checkpointing: whether activations are computed twice rather than kept.
        optim: transformers' name of the optimizer.
        device: cuda or cpu.
        paged_bytes: optimizer states that can leave the device between steps.
    """

    components: tuple[Component, ...]
    peak_bytes: int
    phase: str
    phases: Mapping[str, int]
    parameters: int
    trainable_parameters: int
    tokens: int
    gradient_checkpointing: bool
    optim: str
    device: str
    paged_bytes: int


@dataclass(frozen=True)
class Choice:
    """How a run is held where its settings leave it open.

    Attributes:
        gradient_checkpointing: whether activations are computed twice rather than kept.
        optim: transformers' name of the optimizer.
        plan: what the run then holds.
        fits: whether the plan fits the device.
        reason: why, in one sentence.
    """

    gradient_checkpointing: bool
    optim: str
    plan: MemoryPlan
    fits: bool
    reason: str


def plan(
    config: Mapping[str, Any],
    train: Mapping[str, Any],
    *,
    device: str = "cuda",
    gradient_checkpointing: bool | None = None,
    optim: str | None = None,
    tokens: int | None = None,
    labelled_tokens: int | None = None,
) -> MemoryPlan:
    """Plans the memory of a run on one device.

    Args:
        config: the model's ``config.json``.
        train: every setting of ``train``, as :func:`~tunegate.contracts.settings.settings_document` gives them.
        device: ``cuda`` or ``cpu``.
        gradient_checkpointing: overrides the setting; without either, activations are kept.
        optim: overrides the setting; where that is ``auto``, PyTorch's fused AdamW.
        tokens: of the largest batch, where the data is known; otherwise every row has ``max_length``.
        labelled_tokens: how many of them have a label; otherwise the worst that can be.

    Returns:
        The plan, the peak of one training step with full optimizer states.

    Raises:
        InputError: for a model or settings that cannot be planned.
    """
    if device not in RUNTIME_BYTES:
        raise InputError(
            "The memory of this device is not planned.",
            seen=repr(device),
            expected=f"one of {', '.join(RUNTIME_BYTES)}",
            remedy="plan for cuda, or for cpu",
        )
    shape = model_shape(config)
    checkpointing = bool(train["gradient_checkpointing"]) if gradient_checkpointing is None else gradient_checkpointing
    batch = train["per_device_train_batch_size"] * train["max_length"] if tokens is None else tokens
    found = _Step(shape, train, device, checkpointing, optim or _optim(train), batch, labelled_tokens)
    phases = found.phases()
    phase, components = max(phases.items(), key=lambda item: _total(item[1]))
    return MemoryPlan(
        components=tuple(component for component in components if component.bytes),
        peak_bytes=_total(components),
        phase=phase,
        phases={name: _total(held) for name, held in phases.items()},
        parameters=shape.parameters,
        trainable_parameters=found.trainable,
        tokens=batch,
        gradient_checkpointing=checkpointing,
        optim=found.optim,
        device=device,
        paged_bytes=found.optimizer.pageable,
    )


def choose(
    config: Mapping[str, Any],
    train: Mapping[str, Any],
    *,
    device: str,
    available_bytes: int,
    tokens: int | None = None,
    labelled_tokens: int | None = None,
) -> Choice:
    """Decides what the settings leave open, in the order of what it costs: nothing, time, more time.

    Activations are kept with AdamW where that fits; otherwise they are computed twice; otherwise the optimizer's states
    are paged as well, which bitsandbytes offers on GPUs as a fallback against spikes. What is set stays as it is.

    Args:
        config: the model's ``config.json``.
        train: every setting of ``train``.
        device: ``cuda`` or ``cpu``.
        available_bytes: all that the device has, as its driver reports it; the plan counts what the process takes.
        tokens: see :func:`plan`.
        labelled_tokens: see :func:`plan`.

    Raises:
        InputError: for a model or settings that cannot be planned.
    """
    usable = int(available_bytes * USABLE_SHARE)
    ways = _ways(train, device)
    plans = [
        plan(
            config,
            train,
            device=device,
            gradient_checkpointing=checkpointing,
            optim=optim,
            tokens=tokens,
            labelled_tokens=labelled_tokens,
        )
        for checkpointing, optim in ways
    ]
    least = min(reversed(plans), key=lambda found: found.peak_bytes)
    chosen = next((found for found in plans if found.peak_bytes <= usable), least)
    fits = chosen.peak_bytes <= usable
    return Choice(chosen.gradient_checkpointing, chosen.optim, chosen, fits, _reason(plans, chosen, usable))


def _ways(train: Mapping[str, Any], device: str) -> list[tuple[bool, str]]:
    """(checkpointing, optimizer), cheapest first, of what the settings allow."""
    asked, optim = train["gradient_checkpointing"], _optim(train)
    ways = [(checkpointing, optim) for checkpointing in ([False, True] if asked is None else [asked])]
    if train["optim"] == "auto" and device == "cuda":
        ways.append((ways[-1][0], PAGED))
    return ways


def _reason(plans: list[MemoryPlan], chosen: MemoryPlan, usable: int) -> str:
    room = f"{gigabytes(usable)} that can be filled"
    if chosen.peak_bytes > usable:
        return f"does not fit: {gigabytes(chosen.peak_bytes)} are needed at the least, of {room}"
    if chosen is plans[0]:
        return f"fits as it is: {gigabytes(chosen.peak_bytes)} of {room}"
    how = "the optimizer's states are paged" if chosen.optim == PAGED else "activations are computed twice"
    return f"{how}: {gigabytes(plans[plans.index(chosen) - 1].peak_bytes)} would be more than the {room}"


def _optim(train: Mapping[str, Any]) -> str:
    return FUSED if train["optim"] == "auto" else str(train["optim"])


def gigabytes(size: int) -> str:
    """Bytes for reading, in units of 10⁹."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _total(components: tuple[Component, ...]) -> int:
    return sum(component.bytes for component in components)


class _Step:
    """The parts of one training step, from which each moment takes what it holds."""

    def __init__(
        self,
        shape: ModelShape,
        train: Mapping[str, Any],
        device: str,
        checkpointing: bool,
        optim: str,
        tokens: int,
        labelled: int | None,
    ) -> None:
        self.shape, self.method, self.device, self.optim, self.tokens = shape, train["method"], device, optim, tokens
        self.held: Precision = precision(self.method, train["dtype"], device)
        self.checkpointing = checkpointing
        self.accumulates = train["gradient_accumulation_steps"] > 1
        self.tensors: tuple[Tensors, ...] = trainable_tensors(shape, train)
        self.trainable = elements(self.tensors)
        self.layout = Layout(
            shape=shape,
            held=self.held,
            method=self.method,
            adapted=adapted_linears(shape, train),
            rank=rank(train),
            dropout=train["lora_dropout"] > 0 and self.method != "full",
            device=device,
        )
        self.base: BaseWeights = (
            nf4_weights(shape, self.held.base, double_quant=train["bnb_4bit_use_double_quant"])
            if self.method == "qlora"
            else plain_weights(shape, self.held.base)
        )
        self.optimizer: OptimizerMemory = optimizer_memory(
            optim, self.tensors, trained=self.held.trained, device=device
        )
        self.head: HeadMemory = head_memory(self.layout, tokens, labelled)

    def phases(self) -> dict[str, tuple[Component, ...]]:
        """Every moment that can be the peak → what is held then."""
        layers = self.shape.num_hidden_layers
        found = {
            "loss and its gradient": (
                *self._during_passes(),
                self._gradients(everything=self.accumulates or self._orthogonality() > 0),
                *self._activations(layers),
                Component("logits", self.head.bytes, self.head.explanation),
                self._workspace(self._orthogonality(), "AdaLoRA's factors, stacked for the orthogonality penalty"),
            ),
            "backward pass, first": (
                *self._during_passes(),
                self._gradients(everything=self.accumulates or self._orthogonality() > 0),
                *self._activations(layers, recomputed=True),
                self._layer_workspace(),
            ),
            "backward pass, last": (
                *self._during_passes(),
                self._gradients(everything=self.accumulates, missing=self._last_gradients()),
                *self._activations(1, recomputed=True),
                self._layer_workspace(),
            ),
            "optimizer step": (
                *self._always(),
                self._gradients(everything=True),
                self._states(paged_out=False),
                self._workspace(self.optimizer.step, "square roots of the second moments"),
            ),
        }
        if self.layout.full:
            twice = self.shape.embedding_weights * self.held.trained if self.shape.tied else 0
            found["gradient of the embedding"] = (
                *self._during_passes(),
                self._gradients(everything=True),
                self._workspace(twice, "the tied output head's share, before the two are added"),
            )
        if self.checkpointing and self._cast_weights():
            casts = self._cast_weights() * layers + self._head_cast()
            found["end of the forward pass"] = (
                *self._during_passes(),
                self._gradients(everything=self.accumulates),
                *self._activations(layers),
                Component("weight copies", casts, "float32 weights cast to 16 bits, kept until the pass ends"),
                Component("logits", self.head.bytes, self.head.explanation),
            )
        return found

    def _always(self) -> tuple[Component, ...]:
        """What is held from the first step to the last, but for the optimizer's states."""
        base = "weights" if self.layout.full else "frozen weights"
        runtime = "CUDA's context and workspaces" if self.device == "cuda" else "Python and its libraries"
        found = [
            Component(base, self.base.weights, self.base.explanation),
            Component("quantization constants", self.base.constants, self.base.constants_explanation),
        ]
        if not self.layout.full:
            counts = self.shape.num_hidden_layers * len(self.layout.adapted) if self.method == "adalora" else 0
            told = f"{self.trainable:,} parameters of rank {self.layout.rank} × {FLOAT32} B"
            found.append(Component("adapter", (self.trainable + counts) * FLOAT32, told))
        if self.method == "adalora":
            told = f"{_AVERAGES} of each of {self.trainable:,} parameters × {FLOAT32} B"
            found.append(Component("allocator averages", _AVERAGES * self.trainable * FLOAT32, told))
        found.append(Component("runtime", RUNTIME_BYTES[self.device], f"{runtime}: an assumption"))
        return tuple(found)

    def _during_passes(self) -> tuple[Component, ...]:
        return (*self._always(), self._states(paged_out=True), self._gaps())

    def _gaps(self) -> Component:
        """On a GPU PyTorch's own allocator reuses them, and the share of it that stays free is there for the rest."""
        factor = GAPS_WITHOUT if self.layout.full else GAPS_WITH_ADAPTER
        each = activations.layer_output_token_bytes(self.layout)
        outputs = self.tokens * self.shape.num_hidden_layers * each if self.device == "cpu" else 0
        told = f"{factor} × outputs of linear modules: {self.tokens:,} tokens × {self.shape.num_hidden_layers} layers"
        return Component("allocator gaps", int(factor * outputs), f"{told} × {each:,} B: an assumption, measured")

    def _states(self, *, paged_out: bool) -> Component:
        states, pageable = self.optimizer.states, self.optimizer.pageable
        told = f"two moments of {self.trainable:,} parameters, {self.optim}"
        if paged_out and pageable:
            return Component("optimizer states", states - pageable, f"{told}; {gigabytes(pageable)} are paged out")
        return Component("optimizer states", states, told)

    def _last_gradients(self) -> int:
        """Parameters without a gradient yet when the first layer's MLP, the last to be widest, has its turn."""
        if not self.layout.full:
            return 0
        layer = sum(linear.weights for linear in self.shape.linears)
        return layer + (0 if self.shape.tied else self.shape.embedding_weights)

    def _gradients(self, *, everything: bool, missing: int | None = None) -> Component:
        element = self.held.trained
        if everything or missing is not None:
            there = self.trainable - (0 if everything or missing is None else missing)
            return Component("gradients", there * element, f"{there:,} parameters × {element} B")
        if self.layout.full:  # the output head's is there first
            weights = self.shape.embedding_weights
            told = f"of the output head: {weights:,} parameters × {element} B"
            return Component("gradients", weights * element, told)
        return Component("gradients", 0, "none yet")

    def _activations(self, layers: int, *, recomputed: bool = False) -> tuple[Component, ...]:
        """What ``layers`` layers left for the backward pass; with checkpointing, one of them is whole again."""
        layout, tokens = self.layout, self.tokens
        whole = activations.layer_token_bytes(layout)
        edge = activations.edge_token_bytes(layout)
        casts = activations.layer_fixed_bytes(layout)
        if not self.checkpointing:
            size = layers * (tokens * whole + (0 if layout.full else casts)) + tokens * edge
            told = f"{tokens:,} tokens × ({layers} layers × {whole:,} B + {edge:,} B)"
            copies = layers * casts if layout.full else 0
        else:
            each = activations.checkpoint_token_bytes(layout)
            again = (tokens * whole + (0 if layout.full else casts)) if recomputed else 0
            size = tokens * (layers * each + edge) + again
            told = f"{tokens:,} tokens × ({layers} layers × {each:,} B + {edge:,} B)"
            told += f", and one layer computed again: {tokens:,} × {whole:,} B" if recomputed else ""
            copies = casts if layout.full and recomputed else 0
        copies += self._head_cast() if layout.full and not recomputed and not self.checkpointing else 0
        kept = Component("activations", size, told)
        return kept, Component("weight copies", copies, "float32 weights cast to 16 bits for the backward pass")

    def _cast_weights(self) -> int:
        """Bytes of the 16-bit copies of one layer's float32 weights; 0 where weights are multiplied as they are."""
        return activations.layer_fixed_bytes(self.layout) if self.layout.full else 0

    def _head_cast(self) -> int:
        return self.shape.embedding_weights * self.held.compute if self._cast_weights() else 0

    def _orthogonality(self) -> int:
        """AdaLoRA's penalty stacks all factors in float32."""
        return self.trainable * FLOAT32 if self.method == "adalora" else 0

    def _layer_workspace(self) -> Component:
        largest = max(linear.weights for linear in self.shape.linears)
        each = activations.layer_backward_token_bytes(self.layout)
        size = self.tokens * each
        told = f"gradients inside a layer: {self.tokens:,} tokens × {each:,} B"
        if self.method == "qlora":
            size += largest * self.held.compute
            told += f"; the largest weight dequantized: {largest:,} × {self.held.compute} B"
        if self.layout.full:
            size += largest * self.held.compute
            told += f"; the largest weight's gradient before it is stored: {largest:,} × {self.held.compute} B"
        return self._workspace(size, told)

    def _workspace(self, size: int, told: str) -> Component:
        return Component("workspace", size, told)
