"""From an address to a storage."""

from __future__ import annotations

from tunegate.storage.gcs import GcsStorage, parse_gs
from tunegate.storage.interface import Storage, local_root
from tunegate.storage.local import LocalStorage


def open_storage(uri: str) -> Storage:
    """The storage at ``uri``: a folder, file://, or gs://. Nothing is asked or made before the first use.

    Raises:
        InputError: for an address that cannot be used.
    """
    if uri.startswith("gs://"):
        return GcsStorage(*parse_gs(uri))
    return LocalStorage(local_root(uri))
