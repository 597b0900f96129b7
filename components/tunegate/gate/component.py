"""The KFP component ``gate``."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, OutputPath

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["gate"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def gate(
    settings: dict,  # type: ignore[type-arg]
    registry: str,
    dataset: Input[Dataset],
    adapter: Input[Model],
    merged: Input[Model],
    quantized: Input[Model],
    parity: Input[Artifact],
    champion: Input[Artifact],
    serving: Input[Artifact],
    base_evaluation: Input[Artifact],
    merged_evaluation: Input[Artifact],
    quantized_evaluation: Input[Artifact],
    verdict: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
    decision: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Judges the evaluations by the policy. The task succeeds whatever the decision: what follows depends on it.

    Args:
        settings: the section 'gate' of the recipe: the policy.
        registry: a folder or URI; its ledger counts how often the evaluation rows have judged.
        dataset: what prepare wrote; holds the overlap between train and evaluation rows.
        adapter: what train wrote.
        merged: what merge wrote.
        quantized: what quantize wrote.
        parity: how far these models are from each other, token by token.
        champion: what the alias pointed at, evaluated on the same rows as far as the policy compares with it.
        serving: whether the engine that will serve answers as what was evaluated, or that nobody checked.
        base_evaluation: the base model on the evaluation rows.
        merged_evaluation: the merged model on the same rows.
        quantized_evaluation: the quantized model on the same rows.
        verdict: the verdict with its reasons, bound to the digests of what was judged.
        page: every rule with its interval and its rows.
        metrics: counts of rules by decision.
        decision: PASS, FAIL or INCONCLUSIVE.
    """
    from tunegate.gate.launcher import launch

    launch(
        settings,
        registry=registry,
        dataset=dataset,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        parity=parity,
        champion=champion,
        serving=serving,
        evaluations={"base": base_evaluation, "merged": merged_evaluation, "quantized": quantized_evaluation},
        verdict=verdict,
        page=page,
        metrics=metrics,
        decision=decision,
    )
