"""The KFP component ``prepare``."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Metrics, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["prepare"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def prepare(
    settings: dict,  # type: ignore[type-arg]
    dataset: str,
    base_model: str,
    prepared: Output[Dataset],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Validates, de-duplicates and splits a data set, and takes the calibration rows from its train side.

    Args:
        settings: the section 'prepare' of the recipe.
        dataset: a .jsonl or .parquet file, a folder of them, or a hub data set 'org/name@revision'.
        base_model: whose tokenizer and chat template the rows are rendered with.
        prepared: train, validation, evaluation and calibration rows.
        page: the profile: lengths, roles, what was dropped and why.
        metrics: counts of rows.
    """
    from tunegate.prepare.launcher import launch

    launch(settings, dataset=dataset, base_model=base_model, prepared=prepared, page=page, metrics=metrics)
