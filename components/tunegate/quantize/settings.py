"""Every setting of quantize, once."""

from __future__ import annotations

from dataclasses import dataclass

from tunegate.contracts.settings import setting

#: Scheme → whether it is calibrated on rows (GPTQ), and whether weights have groups.
SCHEMES = ("W4A16", "W8A8", "FP8_DYNAMIC")
CALIBRATED = ("W4A16", "W8A8")
GROUPED = ("W4A16",)


@dataclass(frozen=True)
class QuantizeSettings:
    """How the merged model is quantized."""

    scheme: str = setting(
        "W4A16",
        help="W4A16: 4-bit weights in groups (GPTQ); W8A8: 8-bit weights and activations (GPTQ); "
        "FP8_DYNAMIC: 8-bit floats, without calibration",
        choices=SCHEMES,
    )
    group_size: int = setting(
        0, help="weights that share a scale, for W4A16; 0: the largest of 128, 64, 32 that divides every layer",
        unit="weights", minimum=0,
    )  # fmt: skip
    ignore: tuple[str, ...] = setting(
        ("lm_head",), help="layers that stay as they are: names, or 're:' and a regular expression"
    )
    num_calibration_samples: int = setting(
        128, help="rows of the data set's calibration side that GPTQ sees", unit="rows", minimum=1
    )
    max_length: int = setting(2048, help="where a calibration row is cut", unit="tokens", minimum=1)
    dampening_frac: float = setting(
        0.01, help="what GPTQ adds to the Hessian's diagonal, as a share of its mean (Frantar et al., 2023)",
        exclusive_minimum=0.0, maximum=1.0,
    )  # fmt: skip
    seed: int = setting(0, help="seed of every random generator", minimum=0)
