"""Which bytes each image is: the file that a build writes, ``{"tunegate/train": "sha256:…", …}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.errors import InputError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.images import IMAGES

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def image_name(reference: str) -> str:
    """An image of :data:`IMAGES` without its tag."""
    return reference.rpartition(":")[0]


def read_digests(path: Path) -> Mapping[str, str]:
    """Image → the digest of its manifest, as ``images/build.sh`` writes it.

    Raises:
        InputError: when the file is absent or no JSON object, names an image that no step runs in, or holds what is no
            sha256 digest.
    """
    if not path.is_file():
        raise InputError(
            "There is no file of image digests.",
            seen=f"{path}: no such file",
            expected="the file that images/build.sh writes",
            remedy="build and push the images first, or leave --image-digests out and use tags",
        )
    try:
        found = read_json_object(path)
    except ValueError as error:
        raise InputError(
            "The file of image digests cannot be read.",
            seen=f"{path}: {error}",
            expected="a JSON object: image, and its digest",
            remedy="take the file that images/build.sh wrote",
        ) from error
    known = {image_name(reference) for reference in IMAGES.values()}
    wrong = [name for name in found if name not in known]
    wrong += [f"{name}: {digest!r}" for name, digest in found.items() if not _is_digest(digest)]
    if wrong:
        raise InputError(
            "The file of image digests holds what is none.",
            seen=f"{len(wrong)} wrong entries in {path}",
            expected=f"of each of {', '.join(sorted(known))} its digest: sha256: and 64 hexadecimal digits",
            remedy="take the file that images/build.sh wrote for this version",
            items=wrong,
        )
    return {name: str(digest) for name, digest in found.items()}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def pinned(text: str, digests: Mapping[str, str]) -> str:
    """A compiled pipeline that names its images by digest instead of by tag.

    Raises:
        InputError: when an image of the pipeline has no digest.
    """
    used = [reference for reference in sorted(set(IMAGES.values())) if f"image: {reference}\n" in text]
    if missing := [image_name(reference) for reference in used if image_name(reference) not in digests]:
        raise InputError(
            "An image of the pipeline has no digest.",
            seen=f"{', '.join(sorted(digests)) or 'no image'} in the file of image digests",
            expected=f"also {', '.join(missing)}",
            remedy="build these images too, with images/build.sh",
            items=missing,
        )
    for reference in used:
        name = image_name(reference)
        text = text.replace(f"image: {reference}\n", f"image: {name}@{digests[name]}\n")
    return text
