"""The pipeline ``finetune``: from prepare to evaluate, serve_check and the gate; on PASS approve and promote."""

from kfp import dsl

from tunegate_pipelines.form import default
from tunegate_pipelines.quantizers import quantizers
from tunegate_pipelines.resources import request
from tunegate_pipelines.stages import tune_and_judge
from tunegate_pipelines.tasks import check, summarize


@dsl.pipeline(name="finetune", display_name="tunegate finetune")  # type: ignore[untyped-decorator,unused-ignore]
def finetune(
    base_model: str,
    dataset: str,
    registry: str,
    alias: str = default("alias"),
    method: str = default("method"),
    r: int = default("r"),
    lora_alpha: int = default("lora_alpha"),
    learning_rate: float = default("learning_rate"),
    num_train_epochs: float = default("num_train_epochs"),
    max_length: int = default("max_length"),
    merge_base: str = default("merge_base"),
    scheme: str = default("scheme"),
    evaluation_rows: int = default("evaluation_rows"),
    seed: int = default("seed"),
    reuse_evaluations: str = "",
    checkpoint_uri: str = "",
    recipe: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP wants the default as a value
) -> None:
    """Fine-tunes a model, merges, quantizes and evaluates it, and promotes it only when the gate says PASS.

    A verdict of FAIL or INCONCLUSIVE ends the run as failed, with the reasons in the task 'refused'; an approval that
    was denied or expired ends it in the task 'not-approved'.

    Args:
        base_model: A model folder, or 'org/name@commit' of a hub.
        dataset: A .jsonl or .parquet file, a folder of them, or 'org/name@commit' of a hub.
        registry: Where versions and aliases lie: a folder or URI.
        alias: The name that is moved to the promoted version.
        method: How to train: 'lora', 'qlora', 'adalora' or 'full'.
        r: Rank of the adapter; with adalora the average rank that is left.
        lora_alpha: Scale of the adapter; its change is multiplied by lora_alpha / r.
        learning_rate: Peak learning rate; 1e-4 to 2e-4 is usual for adapters, 1e-5 to 2e-5 for full.
        num_train_epochs: Passes over the train rows.
        max_length: Longest row, in tokens.
        merge_base: Which 16-bit base the adapter is added to: 'original', 'dequantized', or the better one: 'measure'.
        scheme: How to quantize: 'W4A16', 'W4A16_ASYM', 'W8A8', 'FP8_DYNAMIC', 'FP8', or 'auto': the best that the
            serving target has, which the recipe names (quantize.serving_target).
        evaluation_rows: How many evaluation rows to judge on; 0 for all.
        seed: Seed of training.
        reuse_evaluations: A folder that keeps evaluated tasks by digest, each made once; empty for none.
        checkpoint_uri: A folder or gs:// address where an interrupted training is continued from; empty for none.
        recipe: Settings of the steps beyond this form, and the gate's policy, by section: prepare, train, merge,
            quantize, parity, evaluate, serve_check, gate, approve, promote, signing, serving.
    """
    ending = summarize(base_model=base_model, dataset=dataset, registry=registry, alias=alias)
    request(ending, "summarize")
    with dsl.ExitHandler(ending, name="tune and judge"):
        settings = check(
            base_model=base_model,
            dataset=dataset,
            registry=registry,
            checkpoint_uri=checkpoint_uri,
            alias=alias,
            method=method,
            r=r,
            lora_alpha=lora_alpha,
            learning_rate=learning_rate,
            num_train_epochs=num_train_epochs,
            max_length=max_length,
            merge_base=merge_base,
            scheme=scheme,
            evaluation_rows=evaluation_rows,
            seed=seed,
            recipe=recipe,
            quantizers=quantizers(),
        )
        request(settings, "check")
        tune_and_judge(
            settings.outputs,
            base_model=base_model,
            dataset=dataset,
            registry=registry,
            alias=alias,
            reuse_evaluations=reuse_evaluations,
            checkpoint_uri=checkpoint_uri,
            claim={},
        )
