"""Every setting of quantize, once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import (
    ALGORITHMS,
    AUTO_GPTQ,
    AUTO_SCHEME,
    AUTOAWQ,
    AWQ,
    BACKENDS,
    GPTQ,
    LLMCOMPRESSOR,
    SCHEMES,
    algorithm_of,
    is_calibrated,
)
from tunegate.contracts.settings import setting
from tunegate.contracts.vllm import SERVING_TARGETS, THIS_MACHINE

#: Setting → the algorithm that alone reads it, and the backends that do.
_READ_BY = {
    "dampening_frac": (GPTQ, (LLMCOMPRESSOR, AUTO_GPTQ)),
    "n_grid": (AWQ, (LLMCOMPRESSOR,)),
}


@dataclass(frozen=True)
class QuantizeSettings:
    """How the merged model is quantized."""

    scheme: str = setting(
        "W4A16",
        help="W4A16: 4-bit weights in groups; W4A16_ASYM: the same with zero points; W8A8: 8-bit integers, weights "
        "and activations; FP8_DYNAMIC: 8-bit floats; FP8: 8-bit floats, the activations' scale fixed by calibration; "
        "auto: the best that serving_target serves",
        choices=(AUTO_SCHEME, *SCHEMES),
    )
    serving_target: str = setting(
        THIS_MACHINE,
        help="the hardware that will serve the model, on which a scheme needs a kernel; auto: this machine in a local "
        "run, and not known elsewhere",
        choices=(THIS_MACHINE, *SERVING_TARGETS),
    )
    backend: str = setting(LLMCOMPRESSOR, help="what quantizes, and in which format", choices=BACKENDS)
    algorithm: str = setting(
        "auto",
        help="gptq, awq, or rtn (rounding to the nearest); auto: what the backend does best for the scheme",
        choices=("auto", *ALGORITHMS),
    )
    group_size: int = setting(
        0, help="weights that share a scale, for 4-bit schemes; 0: the largest of 128, 64, 32 that divides every layer",
        unit="weights", minimum=0,
    )  # fmt: skip
    ignore: tuple[str, ...] = setting(
        ("lm_head",), help="layers that stay as they are: names, or 're:' and a regular expression"
    )
    num_calibration_samples: int = setting(
        128, help="rows of the data set's calibration side that calibrate", unit="rows", minimum=1
    )
    max_length: int = setting(2048, help="where a calibration row is cut", unit="tokens", minimum=1)
    dampening_frac: float = setting(
        0.01, help="what GPTQ adds to the Hessian's diagonal, as a share of its mean (Frantar et al., 2023)",
        exclusive_minimum=0.0, maximum=1.0,
    )  # fmt: skip
    n_grid: int = setting(
        20, help="how many scalings AWQ tries for each layer; its time grows with them", minimum=3, maximum=1000
    )
    legacy_python: str = setting(
        "",
        help="the Python that holds AutoAWQ and AutoGPTQ; empty: what TUNEGATE_QUANTIZE_LEGACY_PYTHON names, else "
        ".venvs/quantize_legacy",
    )
    seed: int = setting(0, help="seed of every random generator", minimum=0)

    def __post_init__(self) -> None:
        if self.scheme == AUTO_SCHEME:
            self._refuse_what_no_scheme_reads()
            return
        algorithm_of(self.scheme, backend=self.backend, asked=self.algorithm)
        if self.group_size and not SCHEMES[self.scheme].grouped:
            grouped = [name for name, scheme in SCHEMES.items() if scheme.grouped]
            raise SettingsError(
                f"quantize.group_size has no meaning for {self.scheme}.",
                seen=f"group_size {self.group_size}",
                expected=f"0: {self.scheme} has no groups",
                remedy=f"leave group_size out, or use {' or '.join(grouped)}",
            )
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Refuses a setting that nothing would read."""
        for field in fields(self):
            reader, backends = _READ_BY.get(field.name, (self.made_by, BACKENDS))
            value = getattr(self, field.name)
            if value != field.default and (reader != self.made_by or self.backend not in backends):
                raise SettingsError(
                    f"quantize.{field.name} has no meaning for {self.made_by} of {self.backend}.",
                    seen=f"{field.name} {value}",
                    expected=f"algorithm {reader} of {' or '.join(backends)}, which alone reads it",
                    remedy=f"leave {field.name} out, or choose one of these",
                )
        if self.legacy_python and self.backend == LLMCOMPRESSOR:
            raise SettingsError(
                f"quantize.legacy_python has no meaning for {LLMCOMPRESSOR}.",
                seen=f"legacy_python {self.legacy_python}",
                expected=f"backend {AUTOAWQ} or {AUTO_GPTQ}, which alone start it",
                remedy="leave legacy_python out",
            )

    def _refuse_what_no_scheme_reads(self) -> None:
        for name in ("backend", "algorithm", "group_size", "legacy_python", *_READ_BY):
            default = next(field.default for field in fields(self) if field.name == name)
            if getattr(self, name) != default:
                raise SettingsError(
                    f"quantize.{name} has no meaning while the scheme is {AUTO_SCHEME}.",
                    seen=f"{name} {getattr(self, name)}",
                    expected=f"{default!r}: what fits the scheme that is taken",
                    remedy=f"leave {name} out, or name the scheme that it is for",
                )

    @property
    def made_by(self) -> str:
        """The algorithm that is used."""
        return algorithm_of(self.scheme, backend=self.backend, asked=self.algorithm)

    @property
    def grouped(self) -> bool:
        """Whether weights have groups."""
        return SCHEMES[self.scheme].grouped

    @property
    def calibrated(self) -> bool:
        """Whether rows are needed."""
        return is_calibrated(self.scheme, self.made_by)
