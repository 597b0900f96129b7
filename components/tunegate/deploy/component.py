"""The KFP component ``deploy``: what an alias points at, on KServe."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from tunegate.contracts import images


@dsl.component(base_image=images.IMAGES["deploy"], install_kfp_package=False)  # type: ignore[untyped-decorator,unused-ignore]
def deploy(
    settings: dict,  # type: ignore[type-arg]
    serving: dict,  # type: ignore[type-arg]
    signing: dict,  # type: ignore[type-arg]
    registry: str,
    alias: str,
    attempt: str,
    deployment: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Brings what an alias points at to all the traffic of its service, as a canary that must show itself first.

    Args:
        settings: the section 'deploy' of the recipe.
        serving: the section 'serving' of the recipe: the flags of production.
        signing: the section 'signing' of the recipe: whose signature counts.
        registry: a folder or URI.
        alias: what is served.
        attempt: names this task over its retries: what was refused once is not tried on users again.
        deployment: what is served, where, and what was seen of it.
        page: the same for people.
        metrics: the error rate that was seen.
    """
    from tunegate.deploy.launcher import launch

    launch(
        settings,
        serving,
        signing,
        registry=registry,
        alias=alias,
        attempt=attempt,
        deployment=deployment,
        page=page,
        metrics=metrics,
    )
