"""Any adapter of LoRA's algebra as plain LoRA of one rank: exact by padding, smaller by singular values.

Module by module an adapter adds ``ΔW = scaling · B·A``. With the scaling in B, and zeros for further rows of A and
columns of B, every module has the same rank and ``lora_alpha`` equals it: ΔW stays what it was, but for one rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.contracts.progress import Progress
from tunegate.tensors.adapter_config import ADAPTER_WEIGHTS
from tunegate.tensors.lora import LoraPair, read_factors
from tunegate.tensors.shards import FLOAT_DTYPES, ShardWriter, TensorSpec, torch_dtype


@dataclass(frozen=True)
class ExportedModule:
    """What became of one module's update.

    Attributes:
        module: its name in the base.
        rank: the rank it had.
        kept_rank: the rank it has, the padding left out.
        norm: Frobenius norm of ΔW before.
        energy: the share of the squared norm that is kept; 1 where nothing was cut.
    """

    module: str
    rank: int
    kept_rank: int
    norm: float
    energy: float


def write_plain_lora(
    adapter: Path, pairs: Collection[LoraPair], folder: Path, *, rank: int, dtype: str, step: str
) -> list[ExportedModule]:
    """Writes ``adapter_model.safetensors`` with ``A: rank × in`` and ``B: out × rank`` for each pair, one at a time.

    Args:
        adapter: the adapter folder that the pairs were read from.
        pairs: its modules. One of a larger rank is cut to its largest singular values.
        folder: where the file is written.
        rank: of every module.
        dtype: torch's name of the dtype that is written.
        step: what the progress is said under.

    Raises:
        AdapterError: when a factor is not finite in this dtype, or no module changes anything.
    """
    from safetensors import safe_open

    stored = next(name for name, torch_name in FLOAT_DTYPES.items() if torch_name == dtype)
    ordered = sorted(pairs, key=lambda pair: pair.module)
    specs = {name: spec for pair in ordered for name, spec in _specs(pair, rank, stored).items()}
    progress = Progress(step, len(ordered), "modules")
    modules: list[ExportedModule] = []
    weights = str(adapter / ADAPTER_WEIGHTS)
    with safe_open(weights, framework="pt") as source, ShardWriter(folder / ADAPTER_WEIGHTS, specs) as out:
        for pair in ordered:
            a, b, module = _fitted(source, pair, rank)
            for factor in _padded(a, b, rank):
                out.write(_cast(factor, stored, pair.module))
            modules.append(module)
            progress.advance()
    if not any(module.norm for module in modules):
        raise AdapterError(
            f"The adapter in {adapter} changes nothing.",
            seen=f"{len(modules)} modules, each with an update of zeros",
            expected="an update in at least one module",
            remedy="train the adapter: an untrained one has B = 0",
        )
    return modules


def _specs(pair: LoraPair, rank: int, dtype: str) -> dict[str, TensorSpec]:
    outputs, inputs = pair.shape
    name = f"base_model.model.{pair.module}.lora_"
    return {
        f"{name}A.weight": TensorSpec(dtype, (rank, inputs)),
        f"{name}B.weight": TensorSpec(dtype, (outputs, rank)),
    }


def _fitted(source: Any, pair: LoraPair, rank: int) -> tuple[Any, Any, ExportedModule]:
    """Factors of at most ``rank`` in float64, the scaling in B, and what was cut."""
    a, b = (factor.double() for factor in read_factors(source, pair))
    b = b * pair.scaling
    if pair.rank <= rank:
        squares = float(((b.T @ b) * (a @ a.T)).sum())  # ‖B·A‖², without the product of full size
        return a, b, ExportedModule(pair.module, pair.rank, pair.rank, max(squares, 0.0) ** 0.5, 1.0)
    a, b, values = truncated(a, b, rank)
    squares, kept = float(values.square().sum()), float(values[:rank].square().sum())
    energy = kept / squares if squares else 1.0
    return a, b, ExportedModule(pair.module, pair.rank, min(rank, len(values)), squares**0.5, energy)


def truncated(a: Any, b: Any, rank: int) -> tuple[Any, Any, Any]:
    """The update of a smaller rank that is nearest to ``B·A`` in Frobenius norm (Eckart and Young, 1936).

    A QR decomposition of each factor leaves a core of r × r, whose singular values are those of ``B·A``: the product of
    full size is never made.

    Args:
        a: ``r × in``, float64.
        b: ``out × r``, float64.
        rank: how many singular values to keep.

    Returns:
        A of ``rank × in`` and B of ``out × rank``, each with the square roots of the singular values in it, and all
        singular values, the largest first.
    """
    import torch

    b_basis, b_core = torch.linalg.qr(b)
    a_basis, a_core = torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(b_core @ a_core.T, full_matrices=False)
    roots = values[:rank].sqrt()
    return roots[:, None] * (right[:rank] @ a_basis.T), (b_basis @ left[:, :rank]) * roots, values


def _padded(a: Any, b: Any, rank: int) -> tuple[Any, Any]:
    """A and B of ``rank``, zeros in what is new."""
    import torch

    missing = rank - a.shape[0]
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


def _cast(factor: Any, dtype: str, module: str) -> Any:
    cast = factor.to(torch_dtype(dtype))
    if not bool(cast.isfinite().all()):
        raise AdapterError(
            f"The update of {module} is not finite.",
            seen="infinite values or values that are no number",
            expected=f"finite values in {FLOAT_DTYPES[dtype]}",
            remedy="export as float32; if that fails too, the adapter diverged in training: look at its loss curve",
        )
    return cast


def plain_lora_config(source: Mapping[str, Any], *, rank: int, target_modules: list[str]) -> dict[str, Any]:
    """The ``adapter_config.json`` of plain LoRA: one rank, ``lora_alpha`` equal to it, no patterns.

    Args:
        source: the configuration of the adapter as it was; what says which base and task it is for is kept.
        rank: of every module.
        target_modules: names of modules, whole or their ends.
    """
    kept = {name: source.get(name) for name in ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")}
    return {
        **kept,
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": target_modules,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def named_targets(adapted: Collection[str], base: Collection[str]) -> list[str]:
    """Names that choose exactly the adapted modules, by PEFT's rule: a whole name, or its end after a point.

    Args:
        adapted: whole names of the adapted modules.
        base: whole names of all modules of the base that have a weight.

    Returns:
        ``q_proj`` where every q_proj is adapted, else the whole name of each that is.
    """
    targets: list[str] = []
    for kind in sorted({_kind(name) for name in adapted}):
        chosen = {name for name in adapted if _kind(name) == kind}
        targets += [kind] if chosen == {name for name in base if _kind(name) == kind} else sorted(chosen)
    return targets


def _kind(module: str) -> str:
    """The last part of a module's name."""
    return module.rpartition(".")[2]
