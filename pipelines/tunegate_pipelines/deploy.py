"""The pipeline ``deploy``: what an alias points at gets the traffic of its service on KServe, or what served serves on.

A pipeline of its own, since rights end where a run ends: this one runs as ``tunegate-deployer``, which can read the
registry and write no alias. Start it after a promotion or a rollback.
"""

from kfp import dsl

from tunegate.deploy.component import deploy as deployed
from tunegate_pipelines.resources import request as requested


@dsl.pipeline(name="deploy", display_name="tunegate deploy")  # type: ignore[untyped-decorator,unused-ignore]
def deploy(
    registry: str,
    alias: str = "champion",
    settings: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP wants the default as a value
    serving: dict = {},  # type: ignore[type-arg]  # noqa: B006
    signing: dict = {},  # type: ignore[type-arg]  # noqa: B006
) -> None:
    """Serves what an alias points at, first as a canary beside what serves now; it takes its place by itself or goes.

    Args:
        registry: Where versions and aliases lie: a URI that the cluster's servers can fetch from.
        alias: What is served.
        settings: Where, and what a new version must show, as in the section 'deploy' of a recipe: service, replicas,
            weights, stage_seconds, max_error_rate, max_latency_ratio, …
        serving: The flags of production, as in the section 'serving' of the recipe that the version was promoted by.
        signing: Whose signature counts, as in the section 'signing' of a recipe: method, public_key, …
    """
    task = deployed(
        settings=settings,
        serving=serving,
        signing=signing,
        registry=registry,
        alias=alias,
        attempt=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    )
    requested(task, "deploy")
