"""AdaLoRA: ``ΔW = P·Λ·Q`` whose ranks are allocated while it trains (arXiv:2303.10512), on PEFT's layers and allocator.

PEFT names P ``lora_B`` (out × r), Λ ``lora_E`` (r × 1) and Q ``lora_A`` (r × in). TRL neither calls PEFT's allocator
nor keeps PEFT's penalty, so both are driven from here. Pruning sets entries of Λ to zero; the factors keep their rank
until they are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunegate.contracts.errors import RunError, SettingsError
from tunegate.train.settings import TrainSettings

#: The share of the run before pruning starts, and with final ranks at its end, in tenths: where no steps are given.
_TINIT_TENTHS, _TFINAL_TENTHS = 1, 3

#: The allocator's running averages, one tensor for every factor, by PEFT's names.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def adalora_config(settings: TrainSettings, *, total_step: int) -> Any:
    """PEFT's configuration of the adapter.

    PEFT's own penalty is switched off: it is another one than ours (:func:`orthogonality`), TRL drops it, and where it
    were not dropped it would also be in the validation loss.

    Args:
        settings: ``r`` is the average rank that is left at the end.
        total_step: the optimizer steps that the run will really have.

    Returns:
        A ``peft.AdaLoraConfig``.

    Raises:
        SettingsError: when no rank could be pruned.
    """
    from peft import AdaLoraConfig

    tinit, tfinal = _phases(settings, total_step)
    _refuse_unprunable(settings, total_step, tinit, tfinal)
    targets: Any = list(settings.target_modules)
    return AdaLoraConfig(
        target_r=settings.r,
        init_r=settings.init_r,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=settings.deltaT,
        beta1=settings.beta1,
        beta2=settings.beta2,
        orth_reg_weight=0.0,
        total_step=total_step,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _phases(settings: TrainSettings, total_step: int) -> tuple[int, int]:
    tinit = total_step * _TINIT_TENTHS // 10 if settings.tinit is None else settings.tinit
    tfinal = total_step * _TFINAL_TENTHS // 10 if settings.tfinal is None else settings.tfinal
    return tinit, tfinal


def _refuse_unprunable(settings: TrainSettings, total_step: int, tinit: int, tfinal: int) -> None:
    last = total_step - tfinal
    seen = f"{total_step} optimizer steps, tinit {tinit}, tfinal {tfinal}, deltaT {settings.deltaT}"
    if settings.use_rslora:
        raise SettingsError(
            "AdaLoRA has no rsLoRA.",
            seen="use_rslora: true",
            expected="use_rslora: false; AdaLoRA scales by lora_alpha / init_r, and PEFT ignores the setting",
            remedy="set use_rslora: false, and a higher lora_alpha for a stronger update",
        )
    if settings.init_r <= settings.r:
        raise SettingsError(
            "AdaLoRA has no rank to prune.",
            seen=f"init_r {settings.init_r}, r {settings.r}",
            expected="init_r, the rank that every layer starts with, above r, the average that is left",
            remedy=f"set init_r to {settings.r * 3 // 2 + settings.r % 2}, one and a half times r",
        )
    if tinit >= last or last < 2:
        raise SettingsError(
            "The run has no steps in which AdaLoRA could prune.",
            seen=seen,
            expected="tinit below steps − tfinal, and at least 2 steps before the last tfinal ones",
            remedy="lower tinit or tfinal, train longer, or use lora",
        )
    if settings.deltaT > last - tinit:
        raise SettingsError(
            "AdaLoRA would prune all ranks at once.",
            seen=seen,
            expected=f"deltaT of at most {last - tinit}: the steps between tinit and the last tfinal ones",
            remedy="lower deltaT, tinit or tfinal, or train longer",
        )


def orthogonality(model: Any) -> Any:
    """``‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F``, averaged over the adapted layers (arXiv:2303.10512, equation 4).

    Pruned columns and rows count as well: they may come back until the ranks are final. Factors of one shape are
    multiplied in one go; the products are r × r and in float32, under autocast too.

    Args:
        model: a model with AdaLoRA layers.

    Returns:
        A float32 scalar through which gradients flow to every P and Q.
    """
    import torch
    from peft.tuners.adalora import AdaLoraLayer

    layers = [module for module in model.modules() if isinstance(module, AdaLoraLayer)]
    name = model.base_model.trainable_adapter_name
    shapes: dict[tuple[int, ...], list[Any]] = {}
    for layer in layers:
        for factor in (layer.lora_A[name], layer.lora_B[name].mT):
            shapes.setdefault(tuple(factor.shape), []).append(factor)
    device = layers[0].lora_A[name].device
    total = torch.zeros((), device=device)
    with torch.autocast(device.type, enabled=False):
        for (r, _), factors in shapes.items():
            stacked = torch.stack(factors).to(torch.float32)
            total = total + (stacked @ stacked.mT - torch.eye(r, device=device)).square().sum()
    return total / len(layers)


def allocator_callback() -> Any:
    """A trainer callback that lets PEFT's allocator score and prune after every optimizer step.

    The place is ``on_optimizer_step``: the step is done, so that what is pruned stays zero in the next forward pass,
    and the gradients are still there, because the trainer clears them afterwards. They are the sums over the
    accumulated batches, clipped to ``max_grad_norm``: within a step the clipping scales every score alike, so the order
    of the ranks stays; in the averages over steps a step with an outsized gradient counts for less.

    The step number is ``global_step + 1``, because the trainer counts up later. PEFT's schedule counts from 1: full
    ranks up to step ``tinit``, final ranks at step ``total_step − tfinal``, which a count from 0 would miss without
    ``tfinal`` steps.
    """
    from transformers import TrainerCallback

    class _Allocate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            planned = _config(model).total_step
            if planned != state.max_steps:
                raise RunError(
                    "AdaLoRA's schedule is not that of the run: its ranks would not reach their budget.",
                    seen=f"total_step {planned}",
                    expected=f"the {state.max_steps} optimizer steps that the trainer will make",
                    remedy="report this with the number of rows and the train settings: it is an error of tunegate",
                )

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.base_model.update_and_allocate(state.global_step + 1)

    return _Allocate()


def rank_table(model: Any) -> list[dict[str, Any]]:
    """The rank of every adapted layer, in the order of the model: what saving keeps.

    Returns:
        Rows of ``module``, ``layer`` (its number, None outside the layers), ``kind`` (for example ``q_proj``),
        ``init_r`` and ``rank``.
    """
    from peft.tuners.adalora import AdaLoraLayer

    adapter = model.base_model.trainable_adapter_name
    pattern = {name.removesuffix(f".{adapter}"): kept for name, kept in (_config(model).rank_pattern or {}).items()}
    rows = []
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, AdaLoraLayer):
            init_r = int(module.lora_E[adapter].shape[0])
            kept = pattern.get(f"{name}.lora_E", [True] * init_r)
            parts = name.split(".")
            numbers = [int(part) for part in parts if part.isdigit()]
            layer = numbers[0] if numbers else None
            rows.append({"module": name, "layer": layer, "kind": parts[-1], "init_r": init_r, "rank": sum(kept)})
    return rows


def allocator_tensors(model: Any) -> dict[str, Any]:
    """The allocator's averages as ``<average>/<parameter>`` → tensor: what a checkpoint must hold beside the factors.

    Empty before the first optimizer step, once the ranks are final, and for a model that is not AdaLoRA's.
    """
    allocator = _allocator(model)
    if allocator is None:
        return {}
    return {f"{kind}/{name}": tensor for kind in _AVERAGES for name, tensor in getattr(allocator, kind).items()}


def allocator_document(model: Any) -> dict[str, Any]:
    """The ranks allocated so far, as plain JSON types; empty for a model that is not AdaLoRA's."""
    if _allocator(model) is None:
        return {}
    return {"rank_pattern": _copied(_config(model).rank_pattern)}


def restore_allocator(model: Any, tensors: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Puts back what :func:`allocator_tensors` and :func:`allocator_document` gave.

    Raises:
        RunError: when they are not of this model's allocator.
    """
    allocator = _allocator(model)
    if allocator is None:
        if tensors or document:
            raise _foreign_state("an allocator's state for a model without one")
        return
    import torch

    factors = {name: parameter for name, parameter in model.base_model.model.named_parameters() if "lora_" in name}
    averages: dict[str, dict[str, Any]] = {kind: {} for kind in _AVERAGES}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in averages or name not in factors or tensor.shape != factors[name].shape:
            raise _foreign_state(f"{key} {tuple(tensor.shape)}")
        averages[kind][name] = tensor.detach().to(factors[name].device, torch.float32, copy=True)
    if any(
        held.keys() not in (set(), factors.keys()) or held.keys() != averages["ipt"].keys()
        for held in averages.values()
    ):
        raise _foreign_state(f"averages of {[len(held) for held in averages.values()]} of {len(factors)} factors")
    if document.keys() != {"rank_pattern"}:
        raise _foreign_state(f"a document with {sorted(document)}")
    for kind, held in averages.items():
        setattr(allocator, kind, held)
    _config(model).rank_pattern = _copied(document["rank_pattern"])


def _copied(pattern: Mapping[str, Any] | None) -> dict[str, list[bool]] | None:
    return None if pattern is None else {name: list(kept) for name, kept in pattern.items()}


def _foreign_state(seen: str) -> RunError:
    return RunError(
        "The checkpoint's AdaLoRA state is not this model's.",
        seen=seen,
        expected="the averages of every factor, or of none, and the rank pattern",
        remedy="continue with the base and settings of the run that wrote it, or start without a checkpoint",
    )


def _allocator(model: Any) -> Any:
    """PEFT's ``RankAllocator`` of a PEFT model, or None when it has none."""
    return getattr(getattr(model, "base_model", None), "rankallocator", None)


def _config(model: Any) -> Any:
    return model.peft_config[model.base_model.trainable_adapter_name]
