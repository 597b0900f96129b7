"""Whether a scheme can be served on a target, with which groups, and which scheme ``auto`` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import AUTO_SCHEME, LLMCOMPRESSOR
from tunegate.preflight.model_shape import ModelShape
from tunegate.preflight.serving_targets import Served, Target

_OF_OTHER_FORMATS = "no measurement; serve_check asks the serving engine itself"


@dataclass(frozen=True)
class SchemeFit:
    """A scheme on a target, for one model.

    Attributes:
        scheme, target: their names.
        served: see :data:`~tunegate.preflight.serving_targets.Served`; ``no`` as well where no group size fits.
        group_size: weights that share a scale; 0 for a scheme without groups, or where none fits.
        reason: why.
        source: where that is from.
    """

    scheme: str
    target: str
    served: Served
    group_size: int
    reason: str
    source: str


def quantized_widths(shape: ModelShape, ignore: Sequence[str]) -> dict[str, int]:
    """Kind of layer → its number of inputs, from ``config.json`` alone; kinds that ``ignore`` may name are left out."""
    return {
        linear.name: linear.inputs
        for linear in shape.linears
        if not any(linear.name in entry or entry.startswith("re:") for entry in ignore)
    }


def fit_scheme(scheme: str, target: Target, widths: Mapping[str, int], *, asked: int = 0) -> SchemeFit:
    """What becomes of a scheme on a target.

    Args:
        scheme: its name.
        target: where it will be served.
        widths: layer → its number of inputs; without any, group sizes are not looked at.
        asked: the group size that was set; 0 takes the largest that fits.
    """
    cell = target.cells[scheme]
    if not cell.group_sizes:
        return SchemeFit(scheme, target.name, cell.served, 0, cell.reason, cell.source)
    sizes = tuple(size for size in cell.group_sizes if asked in (0, size))
    if not sizes:
        reason = f"its kernels are used with groups of {', '.join(map(str, cell.group_sizes))}, not of {asked}"
        return SchemeFit(scheme, target.name, "no", 0, reason, cell.source)
    fitting = [size for size in sizes if not any(width % size for width in widths.values())]
    if not fitting:
        name, width = next((name, width) for name, width in widths.items() if width % sizes[-1])
        reason = f"no group size of {', '.join(map(str, sizes))} divides the inputs of every layer: {name} has {width}"
        return SchemeFit(scheme, target.name, "no", 0, reason, "the model's config.json")
    return SchemeFit(scheme, target.name, cell.served, fitting[0], cell.reason, cell.source)


def fit_format(backend: str, fit: SchemeFit) -> SchemeFit:
    """What is known of a scheme in the format of the backend that makes it.

    The table is about compressed-tensors, which llmcompressor writes. vLLM takes the formats of AutoAWQ and AutoGPTQ
    by other code, with other kernels behind it: what holds for the one is no promise for the others.

    Args:
        backend: what quantizes.
        fit: the scheme in compressed-tensors.
    """
    if backend == LLMCOMPRESSOR:
        return fit
    reason = f"not measured for {backend}'s format; the table is about compressed-tensors, where it is {fit.served!r}"
    return replace(fit, served="not known", reason=f"{reason}: {fit.reason}", source=_OF_OTHER_FORMATS)


def choose_scheme(target: Target, widths: Mapping[str, int]) -> SchemeFit:
    """The first scheme in the target's order that is served there as it is evaluated, with groups that fit.

    Args:
        target: where the model will be served.
        widths: layer → its number of inputs.

    Returns:
        The scheme, with all that was passed over in its reason.
    """
    passed: list[str] = []
    for scheme in target.best_first:
        found = fit_scheme(scheme, target, widths)
        if found.served == "as evaluated":
            why = f"{target.why} ({target.source}); {found.reason}"
            told = "; ".join([*passed, why])
            return SchemeFit(scheme, target.name, found.served, found.group_size, told, found.source)
        passed.append(f"not {scheme}: {found.reason}")
    raise AssertionError(f"{target.name} serves no scheme: the table is wrong")


def refuse_unserved(
    scheme: str, target: Target, widths: Mapping[str, int], *, asked: int = 0, backend: str = LLMCOMPRESSOR
) -> SchemeFit:
    """What becomes of a scheme on a target, where it can be served at all.

    Raises:
        SettingsError: with the table's reason, and the scheme that can be served.
    """
    found = fit_format(backend, fit_scheme(scheme, target, widths, asked=asked))
    if found.served == "no":
        raise SettingsError(
            f"{scheme} cannot be served on {target.name}.",
            seen=found.reason,
            expected=f"a scheme that {target.name} serves ({found.source})",
            remedy=instead(target, widths),
        )
    return found


def instead(target: Target, widths: Mapping[str, int]) -> str:
    """What to set in place of a scheme that the target does not serve."""
    return (
        f"set scheme: {AUTO_SCHEME}, which takes {choose_scheme(target, widths).scheme}, "
        "or name the serving_target that really serves"
    )
