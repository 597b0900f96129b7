"""Which group size fits every layer: the number of inputs of each must be a multiple of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.vllm import GROUP_SIZES


def pick_group_size(widths: Mapping[str, int], *, asked: int = 0) -> int:
    """The group size to use.

    Args:
        widths: layer → its number of inputs.
        asked: the size that was set; 0 picks the largest of :data:`GROUP_SIZES` that divides every width.

    Raises:
        SettingsError: naming the layers that do not fit, and what to do.
    """
    if asked:
        if unfit := _unfit(widths, asked):
            raise _refusal(widths, unfit, f"group_size {asked} does not divide the inputs of every layer.")
        return asked
    fitting = [size for size in GROUP_SIZES if not _unfit(widths, size)]
    if not fitting:
        smallest = GROUP_SIZES[-1]
        raise _refusal(widths, _unfit(widths, smallest), f"No group size of {_listed(GROUP_SIZES)} fits every layer.")
    return fitting[0]


def _unfit(widths: Mapping[str, int], size: int) -> list[str]:
    return sorted(name for name, width in widths.items() if width % size)


def _refusal(widths: Mapping[str, int], unfit: Sequence[str], failed: str) -> SettingsError:
    fits = [size for size in GROUP_SIZES if not _unfit(widths, size)]
    other = (
        f"set quantize.group_size to {fits[0]} (or 0 to pick it)"
        if fits
        else "use a scheme without groups (W8A8, FP8_DYNAMIC)"
    )
    return SettingsError(
        failed,
        seen=f"{len(unfit)} of {len(widths)} layers have another number of inputs",
        expected="inputs % group_size == 0 in every layer that is quantized",
        remedy=f"{other}, or add the layers to quantize.ignore",
        items=[f"{name} (inputs {widths[name]})" for name in unfit],
    )


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
