"""The pipeline's own small components: the check at the start, the refusal, and the summary at the end."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["check"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def check(
    base_model: str,
    dataset: str,
    registry: str,
    checkpoint_uri: str,
    alias: str,
    method: str,
    r: int,
    lora_alpha: int,
    learning_rate: float,
    num_train_epochs: float,
    max_length: int,
    merge_base: str,
    scheme: str,
    evaluation_rows: int,
    seed: int,
    recipe: dict,  # type: ignore[type-arg]
    quantizers: dict,  # type: ignore[type-arg]
    page: Output[HTML],
) -> NamedTuple(  # type: ignore[valid-type]
    "Settings",
    [
        ("prepare", dict),
        ("train", dict),
        ("merge", dict),
        ("quantize", dict),
        ("parity", dict),
        ("evaluate", dict),
        ("serve_check", dict),
        ("gate", dict),
        ("approve", dict),
        ("promote", dict),
        ("signing", dict),
        ("serving", dict),
        ("approval", str),
        ("quantizer", str),
        ("made_by", str),
    ],
):
    """Checks run form and recipe as a whole, before anything is spent, and gives every step its settings.

    Args:
        base_model: as in the run form.
        dataset: as in the run form.
        registry: as in the run form.
        checkpoint_uri: as in the run form.
        alias: as in the run form.
        method: as in the run form.
        r: as in the run form.
        lora_alpha: as in the run form.
        learning_rate: as in the run form.
        num_train_epochs: as in the run form.
        max_length: as in the run form.
        merge_base: as in the run form.
        scheme: as in the run form.
        evaluation_rows: as in the run form.
        seed: as in the run form.
        recipe: as in the run form.
        quantizers: backend of quantize, and the image that holds it.
        page: every setting of the run, and the lint's findings.
    """
    from tunegate_pipelines.launch import launch_check

    form = {
        "alias": alias,
        "method": method,
        "r": r,
        "lora_alpha": lora_alpha,
        "learning_rate": learning_rate,
        "num_train_epochs": num_train_epochs,
        "max_length": max_length,
        "merge_base": merge_base,
        "scheme": scheme,
        "evaluation_rows": evaluation_rows,
        "seed": seed,
    }
    return launch_check(
        form,
        recipe,
        base_model=base_model,
        dataset=dataset,
        registry=registry,
        checkpoint_uri=checkpoint_uri,
        quantizers=quantizers,
        page=page,
    )


@dsl.component(base_image=images.IMAGES["refused"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def refused(
    settings: dict,  # type: ignore[type-arg]
    alias: str,
    registry: str,
    claim: dict,  # type: ignore[type-arg]
    verdict: Input[Artifact],
) -> None:
    """Fails, with the verdict's reasons, so that a refused run is red in KFP and nobody takes it for a promoted one.

    Args:
        settings: the section 'approve' of the recipe: the webhook that is told.
        alias: the alias that stays where it is.
        registry: a folder or URI.
        claim: that of a retraining, which is not made again while nothing changes; empty for any other run.
        verdict: what gate wrote.
    """
    from tunegate_pipelines.launch import launch_refused

    launch_refused(settings, verdict, alias=alias, registry=registry, claim=claim)


@dsl.component(base_image=images.IMAGES["summarize"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def summarize(
    status: dsl.PipelineTaskFinalStatus,
    base_model: str,
    dataset: str,
    registry: str,
    alias: str,
    page: Output[HTML],
) -> None:
    """Writes how the run ended, however it ended.

    Args:
        status: filled by KFP.
        base_model: as in the run form.
        dataset: as in the run form.
        registry: as in the run form.
        alias: as in the run form.
        page: state, and the task and message that KFP gives: on failure those of the group of all steps, so the step
            itself is the red one in the run's graph.
    """
    from tunegate_pipelines.launch import launch_summarize

    run_form = {"base_model": base_model, "dataset": dataset, "registry": registry, "alias": alias}
    launch_summarize(status, run_form, page=page)


@dsl.component(base_image=images.IMAGES["begin_retrain"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def begin_retrain(
    base_model: str,
    dataset: str,
    registry: str,
    alias: str,
    made_by: str,
    approve: dict,  # type: ignore[type-arg]
    approval: str,
    lease_seconds: int,
    holder: str,
    page: Output[HTML],
) -> NamedTuple("Begun", [("decision", str), ("reason", str), ("claim", dict)]):  # type: ignore[valid-type]
    """Looks whether data, base or recipe changed since the alias's version was made, and claims the work when they did.

    Args:
        base_model: as in the run form.
        dataset: as in the run form.
        registry: as in the run form.
        alias: as in the run form.
        made_by: the digest of the recipe, as check gives it.
        approve: the section 'approve' of the recipe.
        approval: whether a person is asked: the claim then lasts as long as there is to answer.
        lease_seconds: how long the claim lasts when this run dies.
        holder: this run.
        page: what was decided, and why.
    """
    from tunegate_pipelines.launch_retrain import launch_begin

    return launch_begin(
        base_model=base_model,
        dataset=dataset,
        registry=registry,
        alias=alias,
        made_by=made_by,
        approve=approve,
        approval=approval,
        lease_seconds=lease_seconds,
        holder=holder,
        page=page,
    )


@dsl.component(base_image=images.IMAGES["end_retrain"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def end_retrain(
    status: dsl.PipelineTaskFinalStatus,
    base_model: str,
    dataset: str,
    registry: str,
    alias: str,
    holder: str,
    page: Output[HTML],
) -> None:
    """Writes how the run ended, however it ended, and gives its claim back.

    Args:
        status: filled by KFP.
        base_model: as in the run form.
        dataset: as in the run form.
        registry: as in the run form.
        alias: as in the run form.
        holder: this run.
        page: as that of summarize.
    """
    from tunegate_pipelines.launch_retrain import launch_end

    run_form = {"base_model": base_model, "dataset": dataset, "registry": registry, "alias": alias}
    launch_end(status, run_form, holder=holder, page=page)


@dsl.component(base_image=images.IMAGES["skipped"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def skipped(reason: str) -> None:
    """Says why nothing was made, where a person looks first: the run's graph.

    Args:
        reason: as begin_retrain gives it.
    """
    from tunegate.contracts.progress import say

    say("retrain", reason)
