"""The KFP components that evaluate: a base by its address, a tuned model as an artifact, a champion from a registry."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["evaluate"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def evaluate_base(
    settings: dict,  # type: ignore[type-arg]
    base_model: str,
    reuse: str,
    dataset: Input[Dataset],
    evaluation: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Evaluates the untuned base model, which is what the tuned one is compared with.

    Args:
        settings: the section 'evaluate' of the recipe.
        base_model: a model folder, or 'org/name@revision' of a hub.
        reuse: a folder that keeps finished tasks by digest, so that the same work is done once; '' for none.
        dataset: what prepare wrote; train rows are read where a task has rows of its own, to look for these among them.
        evaluation: results and per-row scores.
        page: results, with examples.
        metrics: the aggregate of each task and metric.
    """
    from tunegate.evaluate.launcher import launch_base

    launch_base(
        settings,
        base_model=base_model,
        reuse=reuse,
        dataset=dataset,
        evaluation=evaluation,
        page=page,
        metrics=metrics,
    )


@dsl.component(base_image=images.IMAGES["evaluate"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def evaluate_model(
    settings: dict,  # type: ignore[type-arg]
    reuse: str,
    model: Input[Model],
    dataset: Input[Dataset],
    evaluation: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Evaluates a model that this pipeline made, on the same rows as the base.

    Args:
        settings: the section 'evaluate' of the recipe.
        reuse: a folder that keeps finished tasks by digest, so that a pod that is tried again goes on; '' for none.
        model: what merge or quantize wrote.
        dataset: what prepare wrote; train rows are read where a task has rows of its own, to look for these among them.
        evaluation: results and per-row scores.
        page: results, with examples.
        metrics: the aggregate of each task and metric.
    """
    from tunegate.evaluate.launcher import launch_model

    launch_model(settings, reuse=reuse, model=model, dataset=dataset, evaluation=evaluation, page=page, metrics=metrics)


@dsl.component(base_image=images.IMAGES["evaluate"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def evaluate_champion(
    settings: dict,  # type: ignore[type-arg]
    gate: dict,  # type: ignore[type-arg]
    registry: str,
    alias: str,
    reuse: str,
    dataset: Input[Dataset],
    like: Input[Artifact],
    champion: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Evaluates what the alias points at now, as far as the policy compares with it, or records that there is nothing.

    Args:
        settings: the section 'evaluate' of the recipe.
        gate: the section 'gate' of the recipe: its policy says which of the champion's models are compared.
        registry: where versions and aliases lie.
        alias: the name that would be moved.
        reuse: a folder that keeps evaluations by digest; '' for none.
        dataset: what prepare wrote; train rows are read where a task has rows of its own, to look for these among them.
        like: an evaluation of this run; the champion's stored one is taken when only the model differs.
        champion: where the alias pointed, and an evaluation of each model that is compared.
        page: the same, for people.
        metrics: how many models are compared.
    """
    from tunegate.evaluate.launcher import launch_champion

    launch_champion(
        settings,
        gate=gate,
        registry=registry,
        alias=alias,
        reuse=reuse,
        dataset=dataset,
        like=like,
        champion=champion,
        page=page,
        metrics=metrics,
    )
