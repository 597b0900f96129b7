"""The pipeline ``retrain``: finetune, when data, base or recipe changed, and while nobody else retrains the alias."""

from kfp import dsl

from tunegate_pipelines.form import default
from tunegate_pipelines.quantizers import quantizers
from tunegate_pipelines.resources import REQUESTS, claimed_seconds, request
from tunegate_pipelines.stages import tune_and_judge
from tunegate_pipelines.tasks import begin_retrain, check, end_retrain, skipped

#: As long as the steps may take.
LEASE_SECONDS = claimed_seconds({step: wanted.timeout_seconds for step, wanted in REQUESTS.items()})


@dsl.pipeline(name="retrain", display_name="tunegate retrain")  # type: ignore[untyped-decorator,unused-ignore]
def retrain(
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
    lease_seconds: int = LEASE_SECONDS,
    recipe: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP wants the default as a value
) -> None:
    """Fine-tunes, judges and promotes as finetune does, when anything changed since the alias's version was made.

    A run that finds nothing changed, or that a version made of the same was rolled back or refused, or another
    retraining of the same alias, ends green at the task 'skipped', and the page of begin-retrain says why. A run that
    dies blocks the alias until its lease runs out; it promotes nothing when it wakes later.

    Args:
        base_model: A model folder, or 'org/name@commit' of a hub, the commit in full.
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
        lease_seconds: How long a run that died, with its exit handler, blocks the alias: as long as its steps may take
            one after another, since a living run that takes longer is overtaken. The time for an approval is added.
        recipe: Settings of the steps beyond this form, and the gate's policy, by section: prepare, train, merge,
            quantize, parity, evaluate, serve_check, gate, approve, promote, signing, serving.
    """
    holder = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    ending = end_retrain(base_model=base_model, dataset=dataset, registry=registry, alias=alias, holder=holder)
    request(ending, "end_retrain")
    with dsl.ExitHandler(ending, name="retrain"):
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
        of = settings.outputs
        begun = begin_retrain(
            base_model=base_model,
            dataset=dataset,
            registry=registry,
            alias=alias,
            made_by=of["made_by"],
            approve=of["approve"],
            approval=of["approval"],
            lease_seconds=lease_seconds,
            holder=holder,
        )
        request(begun, "begin_retrain")
        with dsl.If(begun.outputs["decision"] == "changed", name="changed"):
            tune_and_judge(
                of,
                base_model=base_model,
                dataset=dataset,
                registry=registry,
                alias=alias,
                reuse_evaluations=reuse_evaluations,
                checkpoint_uri=checkpoint_uri,
                claim=begun.outputs["claim"],
            )
        with dsl.Else(name="nothing to do"):
            request(skipped(reason=begun.outputs["reason"]), "skipped")
