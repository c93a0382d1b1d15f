"""The quantization schemes, by the names that ``--scheme`` takes.

To add a scheme, write one file in this folder and add one line to ``SCHEMES``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridize.compress.registry import Entry, Registry

if TYPE_CHECKING:  # base.py imports torch, which `quantize --help` does without
    from hybridize.compress.quantize.schemes.base import Scheme

_FOLDER = "hybridize.compress.quantize.schemes"

SCHEMES: Registry[Scheme] = Registry(
    {
        "fp8": Entry(f"{_FOLDER}.fp8:FP8", "per row of a weight and per token"),
        "fp8-tensor": Entry(f"{_FOLDER}.fp8_tensor:FP8Tensor", "per tensor, from calibration"),
        "fp8-block": Entry(
            f"{_FOLDER}.fp8_block:FP8Block",
            "per 128 x 128 block of a weight and per 128 channels of a token",
        ),
    }
)
