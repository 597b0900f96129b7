"""The pipeline ``promote``: moves an alias to what was approved, for teams that keep no run waiting."""

from kfp import dsl

from tunegate.promote.component import promote_approved
from tunegate_pipelines.resources import request as requested


@dsl.pipeline(name="promote", display_name="tunegate promote")  # type: ignore[untyped-decorator,unused-ignore]
def promote(
    request: str,
    registry: str,
    signing: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP wants the default as a value
) -> None:
    """Promotes the version that an approved request names, out of the registry alone. An approval is used once.

    Args:
        request: The request's digest, as its page shows it, or its first letters.
        registry: Where versions and aliases lie: a folder or URI.
        signing: Whose signature counts, as in the section 'signing' of a recipe: method, public_key, …
    """
    requested(promote_approved(signing=signing, registry=registry, request=request), "promote")
