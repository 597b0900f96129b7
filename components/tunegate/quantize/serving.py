"""The scheme that is made: the one that was asked for, where the serving target has it, or the best that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.progress import say
from tunegate.contracts.schemes import AUTO_SCHEME, SCHEMES
from tunegate.contracts.vllm import SERVING_TARGETS, THIS_MACHINE
from tunegate.preflight.scheme_choice import SchemeFit, choose_scheme, refuse_unserved
from tunegate.preflight.serving_targets import find_target
from tunegate.quantize.settings import QuantizeSettings
from tunegate.quantize.work import STEP


def decide(settings: QuantizeSettings, widths: Mapping[str, int]) -> tuple[QuantizeSettings, SchemeFit | None]:
    """The settings with a scheme that can be served.

    Args:
        settings: as the recipe has them.
        widths: layer that will be quantized → its number of inputs.

    Returns:
        The settings with the scheme named, and what the target makes of it; None where no target is named.

    Raises:
        SettingsError: for a scheme that the target does not serve, or ``auto`` without a target to pick for.
    """
    if settings.serving_target == THIS_MACHINE:
        if settings.scheme == AUTO_SCHEME:
            raise SettingsError(
                f"There is no serving target to pick a scheme for: quantize.scheme is {AUTO_SCHEME}.",
                seen=f"quantize.serving_target {THIS_MACHINE}, outside a local run",
                expected=f"one of {', '.join(SERVING_TARGETS)}, or a scheme: {', '.join(SCHEMES)}",
                remedy="set quantize.serving_target to the hardware that will serve the model",
            )
        return settings, None
    target = find_target(settings.serving_target)
    if settings.scheme == AUTO_SCHEME:
        found = choose_scheme(target, widths)
        say(STEP, f"scheme {AUTO_SCHEME} on {target.name}: {found.scheme}; {found.reason}")
        return replace(settings, scheme=found.scheme), found
    found = refuse_unserved(settings.scheme, target, widths, asked=settings.group_size, backend=settings.backend)
    if found.served == "not known":
        say(STEP, f"{settings.scheme} on {target.name}: {found.reason}")
    elif found.served != "as evaluated":
        say(STEP, f"{settings.scheme} on {target.name} answers otherwise than it is evaluated: {found.reason}")
    return settings, found
