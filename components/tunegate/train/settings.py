"""Every setting of ``train``, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import setting

#: Methods that train an adapter on a frozen base.
METHODS = ("lora", "qlora")


@dataclass(frozen=True)
class TrainSettings:
    """Fine-tuning with TRL's SFTTrainer and PEFT; the names are theirs."""

    method: str = setting("qlora", choices=METHODS, help="lora: 16-bit base; qlora: base in 4-bit NF4")
    r: int = setting(16, minimum=1, help="rank of the adapter; 32–64 for complex or multilingual data")
    lora_alpha: int = setting(32, minimum=1, help="the update is scaled by lora_alpha / r; 2 r is usual")
    lora_dropout: float = setting(0.0, minimum=0, maximum=0.9, help="dropout on the adapter's input")
    use_rslora: bool = setting(False, help="scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)")
    target_modules: tuple[str, ...] = setting(
        ("all-linear",), help="names of the linear modules to adapt; 'all-linear' is every one but the output head"
    )
    learning_rate: float = setting(2e-4, exclusive_minimum=0, help="peak learning rate; 1e-4 to 2e-4 for adapters")
    lr_scheduler_type: str = setting(
        "cosine", choices=("cosine", "linear", "constant", "constant_with_warmup"), help="how the rate falls"
    )
    warmup_steps: int = setting(0, minimum=0, unit="optimizer steps", help="steps in which the rate rises")
    weight_decay: float = setting(0.0, minimum=0, help="AdamW's weight decay")
    max_grad_norm: float = setting(1.0, exclusive_minimum=0, help="gradients are clipped to this norm")
    num_train_epochs: float = setting(1.0, exclusive_minimum=0, unit="epochs", help="passes over the train side")
    per_device_train_batch_size: int = setting(8, minimum=1, unit="rows", help="rows of one forward pass")
    per_device_eval_batch_size: int = setting(8, minimum=1, unit="rows", help="rows of one validation pass")
    gradient_accumulation_steps: int = setting(1, minimum=1, help="forward passes for one optimizer step")
    max_length: int = setting(1024, minimum=8, unit="tokens", help="rows are cut to this length")
    evaluations_per_run: int = setting(4, minimum=1, help="how often the validation loss is computed, beside the start")
    gradient_checkpointing: bool = setting(True, help="recompute activations to save memory; slower")
    optim: str = setting(
        "adamw_torch", choices=("adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"), help="the optimizer"
    )
    dtype: str = setting(
        "auto",
        choices=("auto", "float32", "bfloat16"),
        help="dtype of the frozen weights and of the computation; auto: bfloat16 on a GPU, float32 on a CPU",
    )
    bnb_4bit_quant_type: str = setting("nf4", choices=("nf4",), help="QLoRA's data type (arXiv:2305.14314)")
    bnb_4bit_use_double_quant: bool = setting(True, help="quantize the scales too: 0.127 instead of 0.5 bit/param")
    seed: int = setting(42, minimum=0, help="seeds initialisation, order of rows and dropout")

    def __post_init__(self) -> None:
        if not self.target_modules or ("all-linear" in self.target_modules and len(self.target_modules) > 1):
            raise SettingsError(
                "target_modules cannot be used.",
                seen=str(list(self.target_modules)),
                expected="names of linear modules, or ['all-linear'] alone",
                remedy="use ['all-linear']",
            )
