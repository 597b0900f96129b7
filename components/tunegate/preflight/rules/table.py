"""The table of all rules: a new one is a function beside this file and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from tunegate.preflight.rule import Rule
from tunegate.preflight.rules import adalora, adapter, data, judging, training

RULES: Sequence[Rule] = (
    Rule(
        "learning-rate",
        "a learning rate outside 1e-4 to 2e-4 (adapters) or 1e-5 to 2e-5 (full)",
        training.learning_rate,
        "arXiv:2305.14314, table 9 (adapters); arXiv:2307.09288, section 3.1 (full)",
    ),
    Rule(
        "alpha-equals-r",
        "lora_alpha equal to r",
        adapter.alpha_equals_r,
        "arXiv:2106.09685, section 4.1",
        applies=adapter.scaled_by_ratio,
    ),
    Rule(
        "alpha-ratio",
        "lora_alpha far from twice r, and far from a constant 16",
        adapter.alpha_ratio,
        "arXiv:2405.09673 (twice r); arXiv:2305.14314 (constant)",
        applies=adapter.scaled_by_ratio,
    ),
    Rule(
        "attention-only",
        "target modules without any of the MLP's",
        adapter.attention_only,
        "arXiv:2305.14314, section 4",
        applies=adapter.trains_adapter,
    ),
    Rule(
        "tied-embeddings",
        "embed_tokens or lm_head adapted where both are one weight",
        adapter.tied_embeddings,
        "huggingface/peft#2777",
        needs=("base_config",),
        applies=adapter.names_vocabulary,
    ),
    Rule(
        "unknown-target",
        "target modules that the base does not have",
        adapter.unknown_target,
        "train/README.md",
        needs=("base_config",),
        applies=adapter.names_modules,
    ),
    Rule(
        "serving-adapter",
        "an adapter that vLLM cannot load by itself",
        adapter.serving_adapter,
        "vLLM 0.32, lora/utils.py and config/lora.py",
        applies=adapter.trains_adapter,
    ),
    Rule(
        "adalora-ranks",
        "init_r that is not above r",
        adalora.adalora_ranks,
        "arXiv:2303.10512, section 3.3",
        applies=adalora.allocates_ranks,
    ),
    Rule(
        "adalora-rslora",
        "use_rslora with adalora",
        adalora.adalora_rslora,
        "train/README.md",
        applies=adalora.allocates_ranks,
    ),
    Rule(
        "adalora-budget",
        "tinit, tfinal and deltaT that leave no step to prune in",
        adalora.adalora_budget,
        "arXiv:2303.10512, section 3.3",
        needs=("rows",),
        applies=adalora.allocates_ranks,
    ),
    Rule(
        "eval-batch",
        "an evaluation batch larger than the train batch",
        training.eval_batch,
        "huggingface/transformers#8476",
    ),
    Rule(
        "paged-optimizer",
        "a paged optimizer that was asked for",
        training.paged_optimizer,
        "arXiv:2305.14314, section 3",
    ),
    Rule(
        "full-bfloat16",
        "full fine-tuning of bfloat16 weights",
        training.full_bfloat16,
        "arXiv:2010.06192",
        applies=training.trains_every_weight,
    ),
    Rule(
        "warmup-length",
        "a warm-up as long as the run",
        training.warmup_length,
        "train/README.md",
        needs=("rows",),
        applies=training.warms_up,
    ),
    Rule(
        "batch-exceeds-rows",
        "an optimizer step that takes more rows than there are",
        training.batch_exceeds_rows,
        "train/README.md",
        needs=("rows",),
    ),
    Rule(
        "fact-ingestion",
        "rows that look like facts to be learned, with r below 32",
        data.fact_ingestion,
        "arXiv:2405.09673",
        needs=("rows",),
        applies=data.has_low_rank,
    ),
    Rule(
        "max-length",
        "rows that may be longer than the base has positions",
        data.max_length,
        "the base's config.json, max_position_embeddings",
        needs=("base_config",),
    ),
    Rule(
        "group-size",
        "groups of weights that do not divide a layer's inputs",
        judging.group_size,
        "quantize/README.md",
        needs=("base_config",),
        applies=judging.has_groups,
    ),
    Rule(
        "calibration-rows",
        "more calibration rows asked for than are set aside",
        judging.calibration_rows,
        "quantize/README.md",
        applies=judging.calibrates,
    ),
    Rule(
        "policy-task",
        "a policy check of a task or metric that is not measured",
        judging.policy_task,
        "evaluate/README.md",
    ),
)
