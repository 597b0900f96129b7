"""GPUs that a plan is held against, and which of them it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunegate.contracts.errors import InputError
from tunegate.preflight.memory import Choice, choose

_GB = 10**9


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: what it is called here.
        memory_bytes: as it is sold, in units of 10⁹ bytes.
        source: where the maker, or who rents it out, says so.
    """

    name: str
    memory_bytes: int
    source: str


#: Smallest first. The sizes are those on the data sheet. What a driver reports differs: more with HBM (an H200 sold
#: with 141 GB reports 139 GiB, 150·10⁹ bytes), slightly less with GDDR6 and its error correction (an L40S sold with
#: 48 GB reports 44.5 GiB, 47.8·10⁹ bytes), which the share of a device that a plan leaves free covers.
DEVICES = (
    Device("L4", 24 * _GB, "https://www.nvidia.com/en-us/data-center/l4/"),
    Device("A10G", 24 * _GB, "https://aws.amazon.com/ec2/instance-types/g5/"),
    Device("RTX 4090", 24 * _GB, "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4090/"),
    Device("A100 40GB", 40 * _GB, "https://www.nvidia.com/en-us/data-center/a100/"),
    Device("L40S", 48 * _GB, "https://www.nvidia.com/en-us/data-center/l40s/"),
    Device("A100 80GB", 80 * _GB, "https://www.nvidia.com/en-us/data-center/a100/"),
    Device("H100", 80 * _GB, "https://www.nvidia.com/en-us/data-center/h100/"),
    Device("H200", 141 * _GB, "https://www.nvidia.com/en-us/data-center/h200/"),
    Device("B200", 180 * _GB, "https://www.nvidia.com/en-us/data-center/dgx-b200/"),
)


@dataclass(frozen=True)
class Fit:
    """How a run would be held on a device, and whether it fits."""

    device: Device
    choice: Choice


def find_device(name: str) -> Device:
    """The known GPU that is meant: case, spaces, dashes, and a size in GB where there is but one, do not matter.

    Raises:
        InputError: when none is meant, or more than one.
    """
    wanted = _plain(name)
    exact = [device for device in DEVICES if wanted in (_plain(device.name), f"{_plain(device.name)}{_size(device)}")]
    found = exact or [device for device in DEVICES if wanted and _plain(device.name).startswith(wanted)]
    if len(found) != 1:
        raise InputError(
            f"{name!r} is not a GPU that is known." if not found else f"{name!r} may mean more than one GPU.",
            seen=repr(name),
            expected=f"one of {', '.join(device.name for device in found or DEVICES)}",
            remedy="name one of these, or one with as much memory",
        )
    return found[0]


def fits(config: Mapping[str, Any], train: Mapping[str, Any]) -> tuple[Fit, ...]:
    """How a run would be held on each known GPU, smallest first.

    Args:
        config: the model's ``config.json``.
        train: every setting of ``train``.

    Raises:
        InputError: for a model or settings that cannot be planned.
    """
    found: dict[int, Choice] = {}
    for device in DEVICES:
        if device.memory_bytes not in found:
            found[device.memory_bytes] = choose(config, train, device="cuda", available_bytes=device.memory_bytes)
    return tuple(Fit(device, found[device.memory_bytes]) for device in DEVICES)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().removeprefix("nvidia") if letter.isalnum())


def _size(device: Device) -> str:
    return f"{device.memory_bytes // _GB}gb"
