"""The finished folder, judged before it is an artifact: all is quantized that should be, and nothing else touched."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import RunError
from tunegate.contracts.files import pretty_json, sha256_file
from tunegate.models.files import GENERATION_FILES, read_config, tokenizer_files
from tunegate.quantize.layers import PLAIN_DTYPES
from tunegate.tensors.shards import TensorSpec, stored_tensors

#: Tensor → the shard that it lies in, its dtype and shape.
Headers = Mapping[str, tuple[Path, TensorSpec]]


def carry_over(source: Path, folder: Path) -> None:
    """Copies tokenizer, chat template and generation config byte for byte, and completes the source's config.json.

    Raises:
        RunError: when a copy differs from its source.
    """
    generation = [source / name for name in GENERATION_FILES]
    for path in [*tokenizer_files(source), *(path for path in generation if path.is_file())]:
        shutil.copyfile(path, folder / path.name)
        if sha256_file(folder / path.name) != sha256_file(path):
            raise _failure(f"{path.name} differs from the merged model's.", [path.name], "a copy, byte for byte")
    made = read_config(folder)
    config = {**read_config(source), "quantization_config": made["quantization_config"]}
    (folder / "config.json").write_bytes(pretty_json(config))


def check_result(source: Path, folder: Path, *, layers: Sequence[str]) -> None:
    """Compares the quantized folder with the model it was made from.

    Raises:
        RunError: when a layer is not quantized, another tensor was changed, added or lost, or the config does not load.
    """
    import torch

    before, after = stored_tensors(source), stored_tensors(folder)
    missing = [name for name in layers if not _is_quantized(after, name)]
    if missing:
        raise _failure(f"{len(missing)} of {len(layers)} layers were not quantized.", missing, "every layer quantized")
    own = {key for key in after if any(key.startswith(f"{name}.weight") for name in _owners(key, layers))}
    kept, expected = after.keys() - own, before.keys() - {f"{name}.weight" for name in layers}
    if differs := sorted(kept ^ expected):
        raise _failure(
            "The quantized model has other tensors than the merged one.",
            differs,
            "the same tensors beside the quantized ones",
        )
    changed = [
        name for name in sorted(kept) if not torch.equal(read_tensor(before, name), read_tensor(after, name))
        or before[name][1].dtype != after[name][1].dtype
    ]  # fmt: skip
    if changed:
        raise _failure(
            "Quantization changed tensors that it should have left.", changed, "bit for bit as in the merged model"
        )
    scales = [key for key in own if key.endswith("_scale")]
    bad = [key for key in sorted(scales) if not bool(torch.isfinite(read_tensor(after, key).float()).all())]
    if bad:
        raise _failure("Some scales are not finite.", bad, "finite scales")
    _check_config(folder)


def _owners(key: str, layers: Sequence[str]) -> list[str]:
    name = key.rpartition(".weight")[0]
    return [name] if name in set(layers) else []


def _is_quantized(headers: Headers, name: str) -> bool:
    coded = headers.get(f"{name}.weight") or headers.get(f"{name}.weight_packed")
    return coded is not None and coded[1].dtype not in PLAIN_DTYPES and f"{name}.weight_scale" in headers


def _check_config(folder: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    if getattr(config, "quantization_config", None) is None:
        raise _failure(
            "The quantized model's config does not say that it is quantized.", ["config.json"], "quantization_config"
        )


def read_tensor(headers: Headers, name: str) -> Any:
    """One tensor of a folder whose headers were read."""
    from safetensors import safe_open

    with safe_open(headers[name][0], framework="pt") as file:
        return file.get_tensor(name)


def relative_errors(source: Path, folder: Path, *, layers: Sequence[str]) -> dict[str, float]:
    """Layer → ‖W − Ŵ‖ / ‖W‖ (Frobenius), Ŵ being what the stored integers or floats and scales stand for."""
    before, after = stored_tensors(source), stored_tensors(folder)
    errors = {}
    for name in layers:
        weight = read_tensor(before, f"{name}.weight").float()
        errors[name] = float((weight - dequantized(after, name)).norm() / weight.norm().clamp_min(1e-30))
    return errors


def dequantized(headers: Headers, name: str) -> Any:
    """A layer's weights, float32 [outputs, inputs], from symmetric codes and a scale for each row or group."""
    scale = read_tensor(headers, f"{name}.weight_scale").float()
    if f"{name}.weight" in headers:
        codes = read_tensor(headers, f"{name}.weight").float()
    else:
        codes = _unpacked(read_tensor(headers, f"{name}.weight_packed"), columns=_columns(headers, name)).float()
    return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)


def _columns(headers: Headers, name: str) -> int:
    return int(read_tensor(headers, f"{name}.weight_shape")[1])


def _unpacked(packed: Any, *, columns: int) -> Any:
    """Signed 4-bit integers from int32 words of eight, the lowest bits first, stored with an offset of 8."""
    import torch

    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 0xF
    return nibbles.reshape(packed.shape[0], -1)[:, :columns] - 8


def _failure(failed: str, items: Sequence[str], expected: str) -> RunError:
    return RunError(
        failed,
        seen=f"{len(items)} item(s)",
        expected=expected,
        remedy="do not use this model; check the versions of llmcompressor and compressed-tensors",
        items=items,
    )
