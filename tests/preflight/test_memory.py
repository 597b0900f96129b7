"""The memory plan against real models: what it says is held is what torch, PEFT and bitsandbytes hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import InputError, ModelError, SettingsError
from tunegate.contracts.settings import settings_document
from tunegate.models.files import read_config
from tunegate.preflight.known_models import known_config
from tunegate.preflight.memory import RUNTIME_BYTES, USABLE_SHARE, MemoryPlan, choose, plan
from tunegate.preflight.model_shape import model_shape
from tunegate.preflight.optimizers import PAGED_8BIT, optimizer_memory
from tunegate.preflight.trainable import Tensors
from tunegate.train.settings import TrainSettings

TOKENS = 256


def config_of(model_type: str = "llama", **changes: Any) -> Any:
    """A tiny configuration of a family."""
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def as_json(config: Any) -> dict[str, Any]:
    """As transformers would write it to config.json, with every default."""
    return dict(json.loads(config.to_json_string(use_diff=False)))


def settings(method: str, **changes: Any) -> TrainSettings:
    """One batch of TOKENS tokens."""
    given = {"r": 8, "init_r": 12, "per_device_train_batch_size": 1, "max_length": TOKENS, **changes}
    return TrainSettings(method=method, **given)


def adapted(base: Any, wanted: TrainSettings) -> Any:
    """The model with the adapter that train gives it."""
    from peft import get_peft_model

    from tunegate.train.adalora import adalora_config
    from tunegate.train.model import lora_config

    if wanted.method == "full":
        return base
    config = adalora_config(wanted, total_step=20) if wanted.method == "adalora" else lora_config(wanted)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # does not train, as train leaves it: PEFT forgets that on a 16-bit base
            parameter.requires_grad = False
    return model


def size(tensors: Iterator[Any] | list[Any]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def quantization_tensors(model: Any) -> Iterator[Any]:
    """What bitsandbytes keeps beside the packed weights, to undo them."""
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            yield from (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset.reshape(-1))


def part(planned: MemoryPlan, *names: str) -> int:
    """Bytes of some components."""
    return sum(found.bytes for found in planned.components if found.name in names)


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "full"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_gradients_and_states_are_those_of_the_real_model_to_the_byte(
    method: str, tied: bool, make_base: Any
) -> None:
    import torch

    from tunegate.train.model import load_base

    folder: Path = make_base(tied=tied)
    wanted = settings(method)
    model = adapted(load_base(folder, wanted), wanted)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.randint(0, 64, (1, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moments = size([t for state in optimizer.state.values() for t in state.values() if t.dim()])
    gradients = size([parameter.grad for parameter in trained])
    held = size(list(model.parameters())) + size(quantization_tensors(model)) + gradients + moments
    if method == "adalora":
        allocator = model.base_model.rankallocator
        allocator.update_ipt(model.base_model)
        for averages in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc):
            held += size(list(averages.values()))

    planned = plan(read_config(folder), settings_document(wanted), device="cpu")
    assert planned.trainable_parameters == sum(parameter.numel() for parameter in trained)
    assert planned.phases["optimizer step"] - RUNTIME_BYTES["cpu"] == held
    assert part(planned, "optimizer states") == moments


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("gemma", {"head_dim": 32, "tie_word_embeddings": True}),
        ("gemma2", {"head_dim": 32, "tie_word_embeddings": True}),
        ("gemma3_text", {"head_dim": 32, "tie_word_embeddings": True}),
    ],
)
def test_parameters_of_every_family_are_those_of_the_real_model(model_type: str, changes: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(model_type, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model_shape(as_json(config)).parameters == sum(p.numel() for p in model.parameters())


def saved_bytes(model: Any, *, autocast: bool) -> int:
    """Bytes of what autograd keeps of the layers for the backward pass, weights left out, a storage once."""
    import torch

    from tunegate.train.attention import use_row_attention

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    use_row_attention(base)
    model.train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    ends = torch.arange(0, TOKENS + 1, TOKENS // 4, dtype=torch.int32)
    row = torch.arange(TOKENS // 4)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        base.model(
            input_ids=torch.randint(0, 256, (1, TOKENS)), position_ids=torch.cat([row] * 4)[None], use_cache=False,
            cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=TOKENS // 4, max_length_k=TOKENS // 4,
        )  # fmt: skip
    return sum(held for held, _ in seen.values())


@pytest.mark.parametrize("method", ["lora", "adalora", "full"])
@pytest.mark.parametrize(
    ("dtype", "device"),
    [("auto", "cpu"), ("bfloat16", "cpu"), ("auto", "cuda")],
    ids=["float32", "bfloat16", "autocast as on a gpu"],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_activations_are_what_autograd_keeps(method: str, dtype: str, device: str, model_type: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(model_type, **({"head_dim": 16} if model_type == "qwen3" else {}))
    wanted = settings(method, dtype=dtype)
    sixteen_bits = dtype == "bfloat16" or (device == "cuda" and method != "full")
    base = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16 if sixteen_bits else torch.float32, attn_implementation="sdpa"
    )
    measured = saved_bytes(adapted(base, wanted), autocast=device == "cuda")
    planned = plan(as_json(config), settings_document(wanted), device=device, gradient_checkpointing=False)
    copies = 256 * 64 * 2 if device == "cuda" and method == "full" else 0  # the output head's, which does not run here
    assert part(planned, "activations", "weight copies") - copies == pytest.approx(measured, rel=0.15)


def test_kept_activations_grow_with_tokens_and_layers_and_checkpoints_with_the_hidden_width_alone() -> None:
    config, train = known_config("llama-3-8b"), settings_document(settings("lora", max_length=4096))
    kept = [part(plan(config, train, gradient_checkpointing=False, tokens=n), "activations") for n in (4096, 8192)]
    again = [part(plan(config, train, gradient_checkpointing=True, tokens=n), "activations") for n in (4096, 8192)]
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.01)
    assert again[1] - again[0] > 4096 * 32 * 4096 * 2  # a 16-bit hidden state a token and layer
    assert kept[0] > 10 * again[0]


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "full"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_peak_is_the_sum_of_its_parts_and_the_highest_moment(method: str, device: str) -> None:
    planned = plan(known_config("llama-3-8b"), settings_document(settings(method)), device=device)
    assert planned.peak_bytes == sum(found.bytes for found in planned.components) == max(planned.phases.values())
    assert planned.phases[planned.phase] == planned.peak_bytes
    assert all(found.bytes > 0 and found.explanation for found in planned.components)


@pytest.mark.parametrize(("method", "factor"), [("lora", 1.7), ("full", 0.75)])
def test_on_a_cpu_the_heap_holds_more_than_the_tensors(method: str, factor: float) -> None:
    """Resident memory of training on a CPU was up to a third beyond its tensors; a GPU's allocator is PyTorch's own."""
    config, train = as_json(config_of()), settings_document(settings(method))
    outputs = 64 + 32 + 32 + 64 + 160 + 160 + 64  # q, k, v, o, gate, up, down
    assert part(plan(config, train, device="cpu"), "allocator gaps") == int(factor * TOKENS * 3 * outputs * 4)
    assert part(plan(config, train, device="cuda"), "allocator gaps") == 0


def test_paged_states_in_8_bits_are_a_quarter_and_small_tensors_keep_32() -> None:
    large, small = Tensors(1 << 20, 2), Tensors(4000, 1)
    found = optimizer_memory(PAGED_8BIT, (large, small), trained=4, device="cuda")
    blocks = (1 << 20) // 256
    assert found.states == 2 * 2 * ((1 << 20) + 4 * blocks) + 2 * 4000 * 4
    assert found.pageable == 2 * 2 * ((1 << 20) + 4 * blocks)
    assert optimizer_memory(PAGED_8BIT, (large,), trained=4, device="cpu").pageable == 0


class TestChoose:
    """What is left open is decided by what it costs; what is set stays."""

    CONFIG = known_config("llama-3-8b")

    def chosen(self, room: int, **changes: Any) -> Any:
        """The choice on a GPU of which ``room`` bytes can be filled."""
        train = settings_document(settings("full", max_length=4 * 4096, **changes))
        return choose(self.CONFIG, train, device="cuda", available_bytes=int(room / USABLE_SHARE) + 10)

    def peak(self, checkpointing: bool, optim: str) -> int:
        """What one way takes."""
        train = settings_document(settings("full", max_length=4 * 4096))
        return plan(self.CONFIG, train, gradient_checkpointing=checkpointing, optim=optim).peak_bytes

    @pytest.mark.parametrize(
        ("checkpointing", "optim"),
        [(False, "adamw_torch_fused"), (True, "adamw_torch_fused"), (True, "paged_adamw_32bit")],
    )
    def test_the_cheapest_way_that_fits_is_taken(self, checkpointing: bool, optim: str) -> None:
        peak = self.peak(checkpointing, optim)
        found = self.chosen(peak)
        assert (found.gradient_checkpointing, found.optim, found.fits) == (checkpointing, optim, True)
        assert found.plan.peak_bytes == peak
        after = self.chosen(peak - 1_000_000)
        assert (after.gradient_checkpointing, after.optim) != (checkpointing, optim) or not after.fits

    def test_what_fits_in_no_way_is_said_with_the_least_that_is_needed(self) -> None:
        """In pure bfloat16 paged states are no help: bitsandbytes keeps them in 32 bits."""
        for dtype, optim in (("auto", "paged_adamw_32bit"), ("bfloat16", "adamw_torch_fused")):
            train = settings_document(settings("full", max_length=4 * 4096, dtype=dtype))
            found = choose(self.CONFIG, train, device="cuda", available_bytes=10**9)
            assert (found.fits, found.optim) == (False, optim)
            assert "does not fit" in found.reason

    def test_what_is_set_stays(self) -> None:
        assert not self.chosen(10**9, gradient_checkpointing=False).gradient_checkpointing
        assert self.chosen(10**12, gradient_checkpointing=True).gradient_checkpointing
        assert self.chosen(10**9, optim="adamw_torch").optim == "adamw_torch"

    def test_the_tokens_that_are_there_count_and_not_those_that_may_be(self) -> None:
        train = settings_document(settings("lora", max_length=4096, per_device_train_batch_size=64))
        few = choose(self.CONFIG, train, device="cuda", available_bytes=40 * 10**9, tokens=256)
        assert (few.fits, few.gradient_checkpointing) == (True, False)
        assert not choose(self.CONFIG, train, device="cuda", available_bytes=40 * 10**9).fits


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({}, "no model_type"),
        ({"model_type": "llama", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "llama", "num_attention_heads": 4}, "hidden_size: None"),
    ],
)
def test_what_cannot_be_planned_is_refused_and_not_guessed(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(config, settings_document(TrainSettings()))
    assert said in caught.value.seen


def test_a_target_that_the_model_does_not_have_is_refused() -> None:
    train = settings_document(settings("lora", target_modules=("c_attn",)))
    with pytest.raises(SettingsError, match="does not have"):
        plan(known_config("llama-3-8b"), train)


def test_a_device_that_is_not_planned_is_refused() -> None:
    with pytest.raises(InputError, match="not planned"):
        plan(known_config("llama-3-8b"), settings_document(TrainSettings()), device="tpu")
