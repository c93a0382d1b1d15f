"""The dtypes of stored tensors: torch's names, safetensors' codes and sizes, without torch.

Commands that only read headers, such as `inspect`, must not wait for the import of torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAFETENSORS_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""The code of each dtype in a safetensors header, by torch's name."""

NAMES_BY_CODE = {code: name for name, code in SAFETENSORS_CODES.items()}

_BITS = {"bool": 8, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of the dtype with this name."""
    bits = _BITS.get(dtype) or int("".join(c for c in dtype if c.isdecimal()))
    return bits // 8


def torch_dtype(dtype: str) -> "torch.dtype":
    """Return torch's dtype with this name."""
    import torch

    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the name of a torch dtype, such as ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")
