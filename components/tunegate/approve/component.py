"""The KFP components ``request_approval``, ``await_approval``, ``not_approved`` and ``decide``."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output, OutputPath

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["request_approval"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def request_approval(
    settings: dict,  # type: ignore[type-arg]
    signing: dict,  # type: ignore[type-arg]
    alias: str,
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
    asked: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
    request: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Puts the judged version into the registry with no alias on it, and asks for its approval. Ends at once.

    Args:
        settings: the section 'approve' of the recipe.
        signing: the section 'signing' of the recipe.
        alias: the alias that would move.
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
        asked: the request, and everything it is bound to.
        page: what is asked, what was found, and how to answer.
        metrics: figures of the request.
        request: the request's digest.
    """
    from tunegate.approve.launcher import launch_request

    launch_request(
        settings,
        signing,
        alias=alias,
        registry=registry,
        verdict=verdict,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        parity=parity,
        champion=champion,
        serving=serving,
        evaluations={"base": base_evaluation, "merged": merged_evaluation, "quantized": quantized_evaluation},
        asked=asked,
        page=page,
        metrics=metrics,
        request_digest=request,
        claim=claim,
    )


@dsl.component(base_image=images.IMAGES["await_approval"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def await_approval(
    settings: dict,  # type: ignore[type-arg]
    registry: str,
    request: str,
    answer: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
    decision: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Waits for an answer on a small pod, and rejects the request when it expires.

    The task succeeds whatever the answer: what follows depends on it.

    Args:
        settings: the section 'approve' of the recipe.
        registry: a folder or URI.
        request: the request's digest.
        answer: who answered what and why.
        page: the same for people.
        metrics: figures of the answer.
        decision: approve, reject or expire.
    """
    from tunegate.approve.launcher import launch_wait

    launch_wait(
        settings, registry=registry, request=request, answer=answer, page=page, metrics=metrics, decision=decision
    )


@dsl.component(base_image=images.IMAGES["not_approved"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def not_approved(answer: Input[Artifact]) -> None:
    """Fails, with who said no and why, so that the run is red in KFP and nobody takes it for a promoted one.

    Args:
        answer: what await_approval wrote.
    """
    from tunegate.approve.launcher import launch_not_approved

    launch_not_approved(answer)


@dsl.component(base_image=images.IMAGES["decide"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def decide(request: str, decision: str, reason: str, registry: str, page: Output[HTML]) -> None:
    """Answers a request as the identity of this pod, when that may, and when nothing changed since it was asked.

    Args:
        request: the request's digest, or its first letters.
        decision: 'approve' or 'reject'.
        reason: why.
        registry: a folder or URI.
        page: what was decided.
    """
    from tunegate.approve.launcher import launch_decide

    launch_decide(request, decision, reason=reason, registry=registry, page=page)
