"""The header of a safetensors file: which tensors lie where.

The safetensors library checks it; what is read here again are the byte offsets, which the
library keeps to itself and plain reads need.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hybridize.errors import InputError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, and its bytes there."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(path: Path) -> dict[str, Place]:
    """Return the tensors of a safetensors file, in the order of their bytes.

    Raises:
        InputError: the file is missing, truncated or corrupt, or has a dtype unknown to torch.
    """
    try:
        with safe_open(path, "pt"):
            pass  # the library has checked lengths, offsets, shapes and dtypes
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        # The reason may quote the file, and that is no text to send to a terminal as it is.
        reason = "".join(c if c.isprintable() else "?" for c in str(error))
        raise InputError(
            f"{path}: not a sound safetensors file ({reason}); truncated, or not yet complete?"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, unknown here")
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        places[name] = Place(path, dtype, shape, 8 + length + start, end - start)
    return places


def write_header(tensors: list[tuple[str, torch.dtype, tuple[int, ...], int]]) -> bytes:
    """Return the bytes that go before the data of ``(name, dtype, shape, nbytes)`` tensors.

    Padded with spaces so that the data begins at a multiple of 8, as the library does.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        offsets = [offset, offset + nbytes]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
