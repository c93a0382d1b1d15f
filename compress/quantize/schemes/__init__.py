"""The schemes of `hybridize quantize`: one file each, and one line in ``_ALL``."""

from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.schemes.fp8 import FP8
from hybridize.compress.quantize.schemes.fp8_block import FP8Block
from hybridize.compress.quantize.schemes.fp8_tensor import FP8Tensor
from hybridize.errors import InputError

_ALL = (FP8(), FP8Tensor(), FP8Block())

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in _ALL}
"""All schemes by name, the default first."""

__all__ = ["SCHEMES", "Scheme", "find_scheme"]


def find_scheme(name: str) -> Scheme:
    """Return the scheme called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in SCHEMES:
        raise InputError(f"--scheme {name}: choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
