"""The tuned model as its training held it: the adapter on the very base that it saw, or the model that was tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import AdapterError
from tunegate.models.four_bit import four_bit, four_bit_document, load_four_bit
from tunegate.models.load import load_causal_lm
from tunegate.models.training import FULL

_WEIGHTS = "adapter_model.safetensors"


def load_as_trained(base: Path, adapter: Path, training: Mapping[str, Any], *, dtype: str = "auto") -> Any:
    """Loads what training left, computed by PEFT: no merge of ours has a part in it.

    Args:
        base: the 16-bit base model folder.
        adapter: what train wrote.
        training: its ``training.json``. A base that was in 4 bits is quantized again from the same dtype, and computed
            in it; after full fine-tuning there is no base, and the tuned model itself is loaded.
        dtype: of a base that was not in 4 bits, and of the computation.

    Raises:
        AdapterError: when the adapter's weights are not safetensors, or its 4-bit base cannot be held as it was.
    """
    if training.get("method") == FULL:
        return load_causal_lm(adapter, dtype=dtype).eval()
    if not (adapter / _WEIGHTS).is_file():
        raise AdapterError(
            f"{adapter} has no {_WEIGHTS}.",
            seen=", ".join(sorted(path.name for path in adapter.iterdir())),
            expected="safetensors; pickled adapters can run code and are never loaded",
            remedy="give what train wrote",
        )
    from peft import PeftModel

    held = training["four_bit"]
    model = load_causal_lm(base, dtype=dtype) if held is None else _four_bit_base(base, held)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def _four_bit_base(base: Path, held: Mapping[str, Any]) -> Any:
    model = load_four_bit(
        base, dtype=held["weight_dtype"], quant_type=held["quant_type"], double_quant=held["double_quant"]
    )
    found = four_bit_document(four_bit(model)) or {}
    if differs := [
        f"{name}: {found.get(name)}, in training {held[name]}" for name in held if held[name] != found.get(name)
    ]:
        raise AdapterError(
            "The base cannot be held in 4 bits as the adapter's training held it.",
            seen=f"{len(differs)} of {len(held)} properties differ",
            expected="the block size, double quantization, dtype and modules that training.json names",
            remedy="use the versions of transformers and bitsandbytes that the adapter was trained with",
            items=differs,
        )
    return model
