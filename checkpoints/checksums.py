"""Safetensors files with a checksum, in which long runs save their state.

Safetensors itself does not detect damaged tensor data.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hybridize.checkpoints.files import sync
from hybridize.errors import HybridizeError
from hybridize.file_names import utf8_path
from hybridize.output_files import follow_link, unfinished

Tensors = dict[str, torch.Tensor]


def save_checked(path: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """Write tensors and JSON values, atomically.

    Args:
        path: the file; an existing one is replaced.
        tensors: the tensors by name.
        about: further values.

    Raises:
        HybridizeError: the file cannot be written.
    """
    target = follow_link(path)
    partial = target.with_name(f"{target.name}.partial")
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    unfinished.add(partial)
    try:
        save_file(contents, partial, metadata={"about": text, "check": _checksum(text, contents)})
        sync(partial)
        partial.replace(target)
        sync(target.parent)
    except (SafetensorError, OSError) as error:
        raise HybridizeError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
        unfinished.discard(partial)


def load_checked(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a file that `save_checked` has written.

    Raises:
        OSError: the file cannot be read.
        ValueError: it was not written by `save_checked`, or is damaged.
    """
    try:
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    text = metadata.get("about", "")
    if metadata.get("check") != _checksum(text, tensors):
        raise ValueError("its checksum is wrong: the file is damaged")
    about: dict[str, Any] = json.loads(text)
    return tensors, about


def _checksum(text: str, tensors: Tensors) -> str:
    check = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        check = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), check)
        if tensor.numel():  # an empty tensor may have strides that `view` refuses
            check = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, check)
    return f"{check:08x}"
