"""Devices and dtypes of models, by the names that options use."""

import torch

from hybridize.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device with the given name; ``"auto"`` is CUDA if there is a GPU, else the CPU.

    Raises:
        InputError: ``cuda`` without a GPU, or an unknown device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"`device={name}`: PyTorch finds no CUDA GPU; use `device=cpu`")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"`device={name}`: choose auto, cpu or cuda") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype with the given name, or None for the checkpoint's own dtype.

    ``"auto"`` is float32 on the CPU, which is exact and no slower there. On other devices it is the
    checkpoint's own dtype.

    Raises:
        InputError: an unknown dtype.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise InputError(f"`dtype={name}`: choose auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]
