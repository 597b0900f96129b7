"""The KFP component ``train``."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["train"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def train(
    settings: dict,  # type: ignore[type-arg]
    base_model: str,
    checkpoint_uri: str,
    dataset: Input[Dataset],
    adapter: Output[Model],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Trains an adapter, or the whole model, on the completions of the train rows.

    Args:
        settings: the section 'train' of the recipe.
        base_model: a model folder, or 'org/name@revision' of a hub.
        checkpoint_uri: a folder or gs:// address where an interrupted run is continued from; empty for none.
        dataset: what prepare wrote.
        adapter: the adapter in PEFT's format, or the tuned model, with the tokenizer it was trained with.
        page: training and validation loss.
        metrics: final losses and throughput.
    """
    from tunegate.train.launcher import launch

    launch(
        settings,
        base_model=base_model,
        checkpoint_uri=checkpoint_uri,
        dataset=dataset,
        adapter=adapter,
        page=page,
        metrics=metrics,
    )
