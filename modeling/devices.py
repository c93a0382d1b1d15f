"""Where a model is put and in which dtype: what ``--device`` and ``--dtype`` mean."""

import torch

from hybridize.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``"auto"`` is CUDA where there is a GPU.

    Raises:
        InputError: ``cuda`` without a GPU, or no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: PyTorch sees no CUDA GPU here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: choose auto, cpu or cuda") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype to run in that is called ``name``, None for the checkpoint's own.

    ``"auto"`` is float32 on the CPU, where it is exact and no slower, else the checkpoint's own.

    Raises:
        InputError: not a dtype that models run in.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise InputError(f"--dtype {name}: choose auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]
