"""Which bytes each image is: the file that a build writes, ``{"tunegate/train": "sha256:…", …}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tunegate.contracts.errors import InputError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.images import ALL_IMAGES, image_name

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

#: Where a compiled pipeline names an image: a container's, or one among those that quantize's is chosen of.
_NAMED = re.compile(rf"(?<=: )(?:{'|'.join(map(re.escape, ALL_IMAGES))})$", re.MULTILINE)


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
    known = set(map(image_name, ALL_IMAGES))
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


def located(text: str, prefix: str) -> str:
    """A compiled pipeline whose images lie in a registry: ``prefix`` before each name."""
    return _NAMED.sub(lambda found: prefix + found.group(), text)


def pinned(text: str, digests: Mapping[str, str], *, prefix: str = "") -> str:
    """A compiled pipeline that names its images by digest instead of by tag; see :func:`located`.

    Raises:
        InputError: when an image of the pipeline has no digest.
    """
    used = sorted(set(map(image_name, _NAMED.findall(text))))
    if missing := [name for name in used if name not in digests]:
        raise InputError(
            "An image of the pipeline has no digest.",
            seen=f"{', '.join(sorted(digests)) or 'no image'} in the file of image digests",
            expected=f"also {', '.join(missing)}",
            remedy="build these images too, with images/build.sh",
            items=missing,
        )
    exact = {name: f"{prefix}{name}@{digests[name]}" for name in used}
    return _NAMED.sub(lambda found: exact[image_name(found.group())], text)
