"""The KFP component ``quantize``."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["quantize"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def quantize(
    settings: dict,  # type: ignore[type-arg]
    model: Input[Model],
    dataset: Input[Dataset],
    quantized: Output[Model],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Quantizes the merged model for serving, calibrated on train-side rows.

    Args:
        settings: the section 'quantize' of the recipe.
        model: what merge wrote.
        dataset: what prepare wrote; only its calibration rows are read.
        quantized: a compressed-tensors model folder.
        page: which layers were quantized how, and the error that made.
        metrics: size and errors.
    """
    from tunegate.quantize.launcher import launch

    launch(settings, model=model, dataset=dataset, quantized=quantized, page=page, metrics=metrics)
