"""The KFP component ``merge``."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["merge"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def merge(
    settings: dict,  # type: ignore[type-arg]
    base_model: str,
    adapter: Input[Model],
    dataset: Input[Dataset],
    merged: Output[Model],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Adds an adapter to its base, accumulated in float32 and cast once.

    Args:
        settings: the section 'merge' of the recipe.
        base_model: the base the adapter was trained on.
        adapter: what train wrote.
        dataset: what prepare wrote; its validation rows are read by 'merge_base: measure' alone.
        merged: the merged model, in the base's format.
        page: which tensors changed, and by how much.
        metrics: counts and norms of the change.
    """
    from tunegate.merge.launcher import launch

    launch(
        settings,
        base_model=base_model,
        adapter=adapter,
        dataset=dataset,
        merged=merged,
        page=page,
        metrics=metrics,
    )
