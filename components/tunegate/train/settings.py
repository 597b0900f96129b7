"""Every setting of ``train``, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import setting

#: lora, qlora and adalora train an adapter on a frozen base; full trains the base itself.
METHODS = ("lora", "qlora", "adalora", "full")

#: The label of a token that no loss is computed for: what torch's cross_entropy ignores.
IGNORED = -100


@dataclass(frozen=True)
class TrainSettings:
    """Fine-tuning with TRL's SFTTrainer and PEFT; the names are theirs."""

    method: str = setting(
        "qlora",
        choices=METHODS,
        help="lora: adapter on a 16-bit base; qlora: on a base in 4-bit NF4; adalora: ranks allocated while training; "
        "full: every weight",
    )
    r: int = setting(
        16,
        minimum=1,
        help="rank of the adapter, 32–64 for complex or multilingual data; adalora: the average rank left",
    )
    lora_alpha: int = setting(32, minimum=1, help="the update is scaled by lora_alpha / r; 2 r is usual")
    lora_dropout: float = setting(0.0, minimum=0, maximum=0.9, help="dropout on the adapter's input")
    use_rslora: bool = setting(False, help="scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)")
    target_modules: tuple[str, ...] = setting(
        ("all-linear",), help="names of the linear modules to adapt; 'all-linear' is every one but the output head"
    )
    init_r: int = setting(24, minimum=1, help="adalora: rank of every layer before pruning; above r (arXiv:2303.10512)")
    tinit: int | None = setting(
        None, minimum=0, unit="optimizer steps", help="adalora: steps before pruning starts; none: a tenth of the run"
    )
    tfinal: int | None = setting(
        None,
        minimum=0,
        unit="optimizer steps",
        help="adalora: last steps, with fixed ranks; none: three tenths of the run",
    )
    deltaT: int = setting(  # noqa: N815 - PEFT's and the paper's name
        1, minimum=1, unit="optimizer steps", help="adalora: steps from one pruning to the next"
    )
    beta1: float = setting(
        0.85, exclusive_minimum=0, maximum=0.999, help="adalora: smoothing of the sensitivity |θ·∂L/∂θ|"
    )
    beta2: float = setting(0.85, exclusive_minimum=0, maximum=0.999, help="adalora: smoothing of its uncertainty")
    orth_reg_weight: float = setting(
        0.5, minimum=0, help="adalora: weight of ‖PᵀP−I‖² + ‖QQᵀ−I‖² in the loss, averaged over the adapted layers"
    )
    learning_rate: float = setting(
        2e-4, exclusive_minimum=0, help="peak learning rate; 1e-4 to 2e-4 for adapters, 1e-5 to 2e-5 for full"
    )
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
    gradient_checkpointing: bool | None = setting(
        None, help="recompute activations to save memory, slower by a third; none: when the memory plan says so"
    )
    optim: str = setting(
        "auto",
        choices=("auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "paged_adamw_8bit"),
        help="the optimizer; auto: AdamW, fused where the device has it, paged only when the memory plan says so",
    )
    on_divergence: str = setting(
        "report", choices=("report", "stop"), help="what to do when the loss runs away early: say so, or end the run"
    )
    checkpoint_seconds: float = setting(
        600.0, minimum=0, unit="seconds", help="how often a checkpoint is written, where the run has a checkpoint_uri"
    )
    report_to: tuple[str, ...] = setting((), help="trackers to report to as well: tensorboard, mlflow")
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
