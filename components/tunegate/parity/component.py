"""The KFP component ``parity``."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["parity"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def parity(
    settings: dict,  # type: ignore[type-arg]
    base_model: str,
    dataset: Input[Dataset],
    adapter: Input[Model],
    merged: Input[Model],
    quantized: Input[Model],
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Compares the adapter on its base, the merged and the quantized model, token by token on held-out rows.

    Args:
        settings: the section 'parity' of the recipe.
        base_model: the base the adapter was trained on.
        dataset: what prepare wrote; only its validation rows are read.
        adapter: what train wrote.
        merged: what merge wrote.
        quantized: what quantize wrote.
        report: divergence, agreement and errors of each pair, with the noise floor.
        page: the same as pictures, with the worst tokens.
        metrics: mean divergence and agreement.
    """
    from tunegate.parity.launcher import launch

    launch(
        settings,
        base_model=base_model,
        dataset=dataset,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        report=report,
        page=page,
        metrics=metrics,
    )
