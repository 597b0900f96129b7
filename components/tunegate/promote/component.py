"""The KFP components ``promote``, without asking anybody, and ``promote_approved``."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["promote"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def promote(
    settings: dict,  # type: ignore[type-arg]
    signing: dict,  # type: ignore[type-arg]
    registry: str,
    claim: dict,  # type: ignore[type-arg]
    verdict: Input[Artifact],
    adapter: Input[Model],
    merged: Input[Model],
    quantized: Input[Model],
    parity: Input[Artifact],
    champion: Input[Artifact],
    serving: Input[Artifact],
    base_evaluation: Input[Artifact],
    merged_evaluation: Input[Artifact],
    quantized_evaluation: Input[Artifact],
    promotion: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Puts the judged version into the registry and moves the alias to it, on a PASS on these very bytes only.

    Args:
        settings: the section 'promote' of the recipe.
        signing: the section 'signing' of the recipe.
        registry: a folder or URI.
        claim: that of a retraining; empty for any other run.
        verdict: what gate wrote.
        adapter: what train wrote.
        merged: what merge wrote.
        quantized: what quantize wrote.
        parity: how far these models are from each other, which was judged with them.
        champion: what the alias pointed at when they were judged: it must still.
        serving: what was found of the engine that will serve, which was judged with them.
        base_evaluation: the base model on the evaluation rows.
        merged_evaluation: the merged model on the same rows.
        quantized_evaluation: the quantized model on the same rows.
        promotion: what was promoted, where it lies and what it replaced.
        page: the same for people.
        metrics: size of the version.
    """
    from tunegate.promote.launcher import launch

    launch(
        settings,
        signing,
        registry=registry,
        claim=claim,
        verdict=verdict,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        parity=parity,
        champion=champion,
        serving=serving,
        evaluations={"base": base_evaluation, "merged": merged_evaluation, "quantized": quantized_evaluation},
        promotion=promotion,
        page=page,
        metrics=metrics,
    )


@dsl.component(base_image=images.IMAGES["promote"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def promote_approved(
    signing: dict,  # type: ignore[type-arg]
    registry: str,
    request: str,
    promotion: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Moves the alias that a request names to the version that it names, when that was approved: once.

    Args:
        signing: the section 'signing' of the recipe: whose signature counts.
        registry: a folder or URI, where the version lies already.
        request: the request's digest, or its first letters.
        promotion: what was promoted, where it lies and what it replaced.
        page: the same for people.
        metrics: size of the version.
    """
    from tunegate.promote.launcher import launch_approved

    launch_approved(signing, registry=registry, request=request, promotion=promotion, page=page, metrics=metrics)
