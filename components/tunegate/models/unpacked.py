"""Models of AutoAWQ and AutoGPTQ, loaded with their weights restored to floats.

Their kernels multiply 16-bit activations with the restored weights, so this computes what they compute; their own
libraries cannot lie beside a current transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ModelError
from tunegate.models.packed import PACKED

_CODES = ".qweight"
_PARTS = (_CODES, ".qzeros", ".scales", ".g_idx")


def packed_method(config: dict[str, Any]) -> str:
    """``awq`` or ``gptq`` where a config.json says that its weights are packed so, else nothing."""
    method = config.get("quantization_config", {}).get("quant_method", "")
    return str(method) if method in PACKED else ""


def load_unpacked(folder: Path, method: str, *, dtype: Any, device: str) -> Any:
    """The model with every packed layer restored.

    Args:
        folder: config.json and safetensors.
        method: see :func:`packed_method`.
        dtype: torch's, to compute in.
        device: where to.

    Raises:
        ModelError: when the tensors are not those of the architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    found = model.load_state_dict(_restored(folder, PACKED[method]), strict=False)
    tied = set(model.all_tied_weights_keys)
    wrong = [f"{name}: missing" for name in found.missing_keys if name not in tied]
    wrong += [f"{name}: unknown" for name in found.unexpected_keys]
    if wrong:
        raise ModelError(
            f"The weights in {folder} are not those of its config.json.",
            seen=f"{len(wrong)} tensor(s) are missing or unknown",
            expected="every tensor that the architecture has, packed or plain",
            remedy="quantize the model again",
            items=wrong,
        )
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return model.to(device).eval()


def _restored(folder: Path, restore: Callable[[Callable[[str], Any], str], Any]) -> dict[str, Any]:
    """Every tensor of the folder, plain."""
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            where |= dict.fromkeys(file.keys(), shard)

    def read(name: str) -> Any:
        with safe_open(where[name], framework="pt") as file:
            return file.get_tensor(name)

    layers = [name.removesuffix(_CODES) for name in where if name.endswith(_CODES)]
    plain = {name: read(name) for name in where if not name.endswith(_PARTS)}
    return plain | {f"{layer}.weight": restore(read, layer) for layer in layers}
