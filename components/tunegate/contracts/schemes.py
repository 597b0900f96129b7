"""The quantization schemes: what each one stores, and which backend makes it by which algorithm.

A scheme has the name of its preset in compressed-tensors (compressed_tensors/quantization/quant_scheme.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunegate.contracts.errors import SettingsError

LLMCOMPRESSOR, AUTOAWQ, AUTO_GPTQ = "llmcompressor", "autoawq", "auto_gptq"

#: The algorithms: GPTQ (Frantar et al., 2023) moves weights to make up for the error of those before them, AWQ
#: (Lin et al., 2024) rescales what matters most before it rounds, RTN rounds to the nearest value.
GPTQ, AWQ, RTN = "gptq", "awq", "rtn"

#: Stands for the best scheme that the serving target has (preflight/scheme_choice.py).
AUTO_SCHEME = "auto"

BACKENDS = (LLMCOMPRESSOR, AUTOAWQ, AUTO_GPTQ)
ALGORITHMS = (GPTQ, AWQ, RTN)


@dataclass(frozen=True)
class Scheme:
    """A format of weights and activations.

    Attributes:
        weights: int4, int8 or float8.
        activations: float16 (as they are), int8 or float8.
        grouped: whether groups of inputs share a scale; otherwise each output has one, or the whole layer.
        symmetric: whether zero is in the middle of a scale's range; otherwise each scale has a zero point.
        static_activations: whether the activations' scale is measured beforehand and kept.
        algorithms: backend → the algorithms by which it makes the scheme, its default first.
    """

    weights: str
    activations: str
    algorithms: Mapping[str, tuple[str, ...]]
    grouped: bool = False
    symmetric: bool = True
    static_activations: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "W4A16": Scheme("int4", "float16", {LLMCOMPRESSOR: (GPTQ, AWQ), AUTO_GPTQ: (GPTQ,)}, grouped=True),
    "W4A16_ASYM": Scheme(
        "int4", "float16", {LLMCOMPRESSOR: (AWQ, GPTQ), AUTOAWQ: (AWQ,)}, grouped=True, symmetric=False
    ),
    "W8A8": Scheme("int8", "int8", {LLMCOMPRESSOR: (GPTQ,)}),
    "FP8_DYNAMIC": Scheme("float8", "float8", {LLMCOMPRESSOR: (RTN,)}),
    "FP8": Scheme("float8", "float8", {LLMCOMPRESSOR: (RTN,)}, static_activations=True),
}


def algorithm_of(scheme: str, *, backend: str = LLMCOMPRESSOR, asked: str = "auto") -> str:
    """The algorithm by which ``backend`` makes ``scheme``: the one that was asked for, or its default.

    Raises:
        SettingsError: when it cannot, with what can be had.
    """
    made_by = SCHEMES[scheme].algorithms.get(backend, ())
    if made_by and asked in ("auto", *made_by):
        return made_by[0] if asked == "auto" else asked
    raise SettingsError(
        f"{backend} does not make {scheme}" + (f" by {asked}." if made_by else "."),
        seen=f"scheme {scheme}, backend {backend}, algorithm {asked}",
        expected=f"one that goes together; {scheme} is made by "
        + "; ".join(f"{name}: {', '.join(known)}" for name, known in SCHEMES[scheme].algorithms.items()),
        remedy="set quantize.algorithm to 'auto'" if made_by else "set quantize.backend to one of these",
        items=combinations(backend),
    )


def combinations(backend: str) -> list[str]:
    """All that a backend makes, one line a scheme."""
    return [
        f"{backend} makes {name} by {' or '.join(scheme.algorithms[backend])}"
        for name, scheme in SCHEMES.items()
        if backend in scheme.algorithms
    ]


def is_calibrated(scheme: str, algorithm: str) -> bool:
    """Whether rows are needed: by an algorithm that looks at activations, or for their scale."""
    return algorithm != RTN or SCHEMES[scheme].static_activations
