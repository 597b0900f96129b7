"""From an address to a storage."""

from __future__ import annotations

from tunegate.storage.interface import Storage, local_root
from tunegate.storage.local import LocalStorage


def open_storage(uri: str) -> Storage:
    """The storage at ``uri``: a folder, or file://. Nothing is made before the first write.

    Raises:
        InputError: for an address that cannot be used, gs:// among them.
    """
    return LocalStorage(local_root(uri))
