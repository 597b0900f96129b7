"""The finished folder, judged before it is an artifact: all is quantized that should be, and nothing else touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.contracts.files import pretty_json
from tunegate.models.companions import companion_files, copy_files
from tunegate.models.files import read_config
from tunegate.quantize.scaling import without_scaling
from tunegate.quantize.stored import Format, Headers, read_tensor
from tunegate.tensors.shards import stored_tensors


def carry_over(source: Path, folder: Path) -> None:
    """Copies tokenizer, chat template and generation config byte for byte, and completes the source's config.json.

    What a library wrote of them beside the weights is taken away first.

    Raises:
        RunError: when a copy differs from its source.
    """
    for written in companion_files(folder):
        written.unlink()
    copy_files(companion_files(source), folder)
    made = read_config(folder)
    config = {**read_config(source), "quantization_config": made["quantization_config"]}
    (folder / "config.json").write_bytes(pretty_json(config))


def check_result(source: Path, folder: Path, *, layers: Sequence[str], form: Format, rescaled: bool = False) -> None:
    """Compares the quantized folder with the model it was made from.

    Args:
        source: the model that was quantized.
        folder: what came of it.
        layers: the layers that should be quantized.
        form: how they should be stored.
        rescaled: whether the algorithm moves scale between a layer's inputs and the vector before it (AWQ).

    Raises:
        RunError: when a layer is not quantized, another tensor was changed, added or lost, or the config does not load.
    """
    before, after = stored_tensors(source), stored_tensors(folder)
    missing = [name for name in layers if not form.is_quantized(after, name)]
    if missing:
        raise _failure(f"{len(missing)} of {len(layers)} layers were not quantized.", missing, "every layer quantized")
    own = after.keys() & form.own(tuple(layers))
    kept, expected = after.keys() - own, before.keys() - {f"{name}.weight" for name in layers}
    if differs := sorted(kept ^ expected):
        raise _failure(
            "The quantized model has other tensors than the merged one.",
            differs,
            "the same tensors beside the quantized ones",
        )
    fixed = [name for name in sorted(kept) if not (rescaled and _is_vector(before, name))]
    changed = [name for name in fixed if not _equal(before, after, name)]
    if changed:
        raise _failure(
            "Quantization changed tensors that it should have left.", changed, "bit for bit as in the merged model"
        )
    floats = [key for key in own if key.endswith(("scale", "scales"))] + sorted(kept - set(fixed))
    bad = [key for key in sorted(floats) if not _is_finite(after, key)]
    if bad:
        raise _failure("Some scales or rescaled vectors are not finite.", bad, "finite numbers")
    _check_config(folder, form)


def _is_vector(headers: Headers, name: str) -> bool:
    return len(headers[name][1].shape) == 1


def _equal(before: Headers, after: Headers, name: str) -> bool:
    import torch

    same_kind = before[name][1] == after[name][1]
    return same_kind and bool(torch.equal(read_tensor(before, name), read_tensor(after, name)))


def _is_finite(headers: Headers, name: str) -> bool:
    return bool(read_tensor(headers, name).float().isfinite().all())


def _check_config(folder: Path, form: Format) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    stated = getattr(config, "quantization_config", None)
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    if method != form.quant_method:
        raise _failure(
            "The quantized model's config does not say that it is quantized.",
            [f"config.json: quant_method {method!r}"],
            f"quantization_config with quant_method {form.quant_method!r}",
        )


def relative_errors(
    source: Path, folder: Path, *, layers: Sequence[str], form: Format, rescaled: bool = False
) -> dict[str, float]:
    """Layer → ‖W − Ŵ‖ / ‖W‖ (Frobenius), Ŵ being what the stored integers or floats and scales stand for.

    Args:
        source: the model that was quantized.
        folder: what came of it.
        layers: the quantized layers.
        form: how they are stored.
        rescaled: whether rows and columns were rescaled, which the layers around undo; it is undone before measuring.
    """
    before, after = stored_tensors(source), stored_tensors(folder)
    errors = {}
    for name in layers:
        weight = read_tensor(before, f"{name}.weight").float()
        restored = form.dequantized(after, name)
        if rescaled:
            restored = without_scaling(restored, weight)
        errors[name] = _relative(weight, restored)
    return errors


def _relative(weight: Any, restored: Any) -> float:
    return float((weight - restored).norm() / weight.norm().clamp_min(1e-30))


def _failure(failed: str, items: Sequence[str], expected: str) -> RunError:
    return RunError(
        failed,
        seen=f"{len(items)} item(s)",
        expected=expected,
        remedy="do not use this model; check the versions of the libraries that quantize",
        items=items,
    )
