"""From what a person writes to a version: an alias, or the first letters of a digest."""

from __future__ import annotations

from tunegate.registry.aliases import current, list_aliases
from tunegate.registry.versions import find_version
from tunegate.storage.interface import Storage


def named_version(storage: Storage, text: str) -> str:
    """The version that an alias of this name points at, or the one whose digest starts so.

    Raises:
        InputError: when there is none, or more than one.
    """
    record = current(storage, text) if text in list_aliases(storage) else None
    return record.version if record else find_version(storage, text)
