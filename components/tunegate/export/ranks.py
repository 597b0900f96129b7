"""Which rank an export has: one that vLLM serves, and that holds the adapter unless a smaller one was asked for."""

from __future__ import annotations

from collections.abc import Collection

from tunegate.contracts.errors import AdapterError, SettingsError
from tunegate.contracts.vllm import SERVED_RANK, SERVED_RANKS, VLLM, smallest_served
from tunegate.export.settings import ExportSettings
from tunegate.tensors.lora import LoraPair


def target_rank(settings: ExportSettings, pairs: Collection[LoraPair]) -> int:
    """The rank of every exported module.

    Raises:
        SettingsError: for a rank that vLLM does not serve, or a reduction that reduces nothing.
        AdapterError: when the rank is too small for an exact export; names the smallest that fits.
    """
    largest = max(pair.rank for pair in pairs)
    if settings.rank and settings.reduce_rank_to:
        raise SettingsError(
            "Two ranks were asked for.",
            seen=f"rank {settings.rank} and reduce_rank_to {settings.reduce_rank_to}",
            expected="one of them: a cut adapter has the rank that it was cut to",
            remedy="leave rank out",
        )
    _refuse_unserved("rank", settings.rank)
    _refuse_unserved("reduce_rank_to", settings.reduce_rank_to)
    if settings.reduce_rank_to:
        if settings.reduce_rank_to >= largest:
            raise SettingsError(
                "There is no rank to reduce.",
                seen=f"reduce_rank_to {settings.reduce_rank_to}, and the adapter's largest rank is {largest}",
                expected=f"a rank below {largest}",
                remedy=f"leave reduce_rank_to and the data set out: rank {smallest_served(largest)} holds it exactly",
            )
        return settings.reduce_rank_to
    fits = smallest_served(largest)
    if fits is None or 0 < settings.rank < largest:
        raise _too_large(settings.rank or SERVED_RANK, largest, fits, pairs)
    return settings.rank or fits


def _refuse_unserved(name: str, rank: int) -> None:
    if rank and rank not in SERVED_RANKS:
        raise SettingsError(
            f"{VLLM} has no such rank.",
            seen=f"{name} {rank}",
            expected=f"one of {', '.join(map(str, SERVED_RANKS))}",
            remedy=f"choose {smallest_served(rank) or SERVED_RANK}",
        )


def _too_large(rank: int, largest: int, fits: int | None, pairs: Collection[LoraPair]) -> AdapterError:
    wider = "no rank that vLLM serves" if fits is None else f"rank {fits}, the smallest that fits"
    return AdapterError(
        f"An export of rank {rank} cannot hold this adapter exactly.",
        seen=f"ranks up to {largest}",
        expected=wider,
        remedy=("" if fits is None else f"ask for rank {fits}; or ")
        + f"set reduce_rank_to {rank} and give a data set, to be told what that loses",
        items=[f"{pair.module}: rank {pair.rank}" for pair in pairs if pair.rank > rank],
    )
