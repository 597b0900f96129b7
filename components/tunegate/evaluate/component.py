"""The KFP components ``evaluate_base`` and ``evaluate_model``: a base has an address, a tuned model is an artifact."""

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
        dataset: what prepare wrote; only its evaluation rows are read.
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
        dataset: what prepare wrote; only its evaluation rows are read.
        evaluation: results and per-row scores.
        page: results, with examples.
        metrics: the aggregate of each task and metric.
    """
    from tunegate.evaluate.launcher import launch_model

    launch_model(settings, reuse=reuse, model=model, dataset=dataset, evaluation=evaluation, page=page, metrics=metrics)
