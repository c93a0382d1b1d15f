"""The header of a safetensors file: names, dtypes, shapes and byte offsets of its tensors.

The safetensors library checks a header, but does not return the byte offsets that the reader needs.
So the header is parsed here a second time. Nothing here imports torch.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hybridize.checkpoints.dtypes import NAMES_BY_CODE, SAFETENSORS_CODES, itemsize
from hybridize.checkpoints.files import refuse_pointer
from hybridize.errors import InputError, first_line
from hybridize.file_names import utf8_path


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape.
        dtype: torch's name of its dtype, such as ``"bfloat16"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class TensorLocation:
    """The bytes of a stored tensor.

    Attributes:
        file: the safetensors file.
        dtype: torch's name of the dtype.
        shape: the tensor's shape.
        offset: the first byte, counted from the start of the file.
        nbytes: the number of bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorLocation]:
    """Return the tensors of a safetensors file, in the order of their bytes.

    Raises:
        InputError: the file is missing, truncated or corrupt, or has a dtype unknown to torch.
    """
    refuse_pointer(path)
    try:
        with utf8_path(path) as name, safe_open(name, "np"):
            pass  # the library checks lengths, offsets, shapes and dtypes
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        # The reason may quote bytes of the file, such as control codes for the terminal.
        reason = "".join(c if c.isprintable() else "?" for c in str(error))
        raise InputError(
            f"{path}: not a valid safetensors file ({reason}); is it truncated or still being "
            "downloaded?"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return _locations(path, header, 8 + length)


def parse_remote_header(path: Path, text: bytes, size: int) -> dict[str, TensorLocation]:
    """Return the tensors of a safetensors file elsewhere, with the checks of the library.

    Args:
        path: the name of the file, for error messages and for the result.
        text: its header.
        size: the bytes of the file.

    Raises:
        InputError: the header is corrupt, or has a dtype unknown to torch.
    """
    try:
        header = json.loads(text)
        locations = _locations(path, header, 8 + len(text))
        end = 8 + len(text)
        for location in locations.values():
            expected = math.prod(location.shape) * itemsize(location.dtype)
            if location.offset != end or location.nbytes != expected:
                raise ValueError("the offsets and the shapes do not fit")
            end += location.nbytes
        if end != size:
            raise ValueError(f"it has {size} bytes instead of {end}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "".join(c if c.isprintable() else "?" for c in first_line(error))
        raise InputError(f"{path}: not a valid safetensors file ({reason})") from error
    return locations


def _locations(path: Path, header: dict[str, Any], start: int) -> dict[str, TensorLocation]:
    """Return the tensors of a parsed header, in the order of their bytes.

    Args:
        path: the file.
        header: the header.
        start: the first byte of the data.

    Raises:
        InputError: a dtype is unknown to torch.
    """
    header.pop("__metadata__", None)
    locations = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = NAMES_BY_CODE.get(entry["dtype"])
        if dtype is None:
            raise InputError(
                f"{path}: tensor {name!r} has the dtype {entry['dtype']}, which is not supported"
            )
        first, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        locations[name] = TensorLocation(path, dtype, shape, start + first, end - first)
    return locations


def write_header(tensors: Sequence[TensorSpec]) -> bytes:
    """Return the bytes that precede the data of these tensors.

    They are padded with spaces to a multiple of 8 bytes, as in the safetensors library.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in tensors:
        header[spec.name] = {
            "dtype": SAFETENSORS_CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
