"""The KFP component ``serve_check``."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["serve_check"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def serve_check(
    settings: dict,  # type: ignore[type-arg]
    serving: dict,  # type: ignore[type-arg]
    model: Input[Model],
    dataset: Input[Dataset],
    evaluation: Input[Artifact],
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Serves the candidate with vLLM and the flags of production, and holds its answers against the evaluated model.

    Args:
        settings: the section 'serve_check' of the recipe.
        serving: the section 'serving' of the recipe: how the model is served.
        model: what quantize wrote: the bytes that will be served.
        dataset: what prepare wrote.
        evaluation: the evaluation of that model.
        report: agreement, differences and rendering, with the noise floor; or that nothing was checked.
        page: the same as pictures, with the rows that differ.
        metrics: agreement and mean difference.
    """
    from tunegate.serve_check.launcher import launch

    launch(
        settings,
        serving,
        model=model,
        dataset=dataset,
        evaluation=evaluation,
        report=report,
        page=page,
        metrics=metrics,
    )
