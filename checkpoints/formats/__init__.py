"""The on-disk architectures that hybridize reads and writes.

A new one is a new file here and one line in ``_ALL``.
"""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats.bamba import Bamba
from hybridize.checkpoints.formats.base import CannotHoldError, Entry, Fit, Format
from hybridize.checkpoints.formats.granitemoehybrid import GraniteMoeHybrid
from hybridize.checkpoints.formats.llama import Llama
from hybridize.checkpoints.formats.mamba2 import Mamba2Format
from hybridize.checkpoints.formats.mistral import Mistral
from hybridize.checkpoints.formats.nemotron_h import NemotronH
from hybridize.checkpoints.formats.own import Own
from hybridize.checkpoints.formats.qwen2 import Qwen2
from hybridize.checkpoints.formats.qwen3 import Qwen3
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.rope import check_rope

_ALL = (
    GraniteMoeHybrid(),
    Bamba(),
    NemotronH(),
    Mamba2Format(),
    Own(),
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
)

_MOST_LAYERS = 10_000  # a mistyped number must not cost hours

FORMATS: dict[str, Format] = {known.name: known for known in _ALL}
"""All formats by ``model_type``; those that can hold Mamba-2 first, the most stock first."""

HYBRID_FORMATS = ("granitemoehybrid", "bamba", "nemotron_h", "mamba2", "hybridize")
"""What a conversion may write, in the order in which ``--format auto`` tries them."""

__all__ = [
    "FORMATS",
    "HYBRID_FORMATS",
    "CannotHoldError",
    "Entry",
    "Fit",
    "Format",
    "config_from_json",
    "read_config",
]


def read_config(
    reader: CheckpointReader, *, quantized: bool = False
) -> tuple[Format, HybridConfig]:
    """Understand a checkpoint's config.json.

    Args:
        reader: the checkpoint.
        quantized: let a quantized one pass; see `hybridize.checkpoints.quantization`.

    Raises:
        InputError: an unknown or missing ``model_type``, a quantized checkpoint, or a
            configuration that contradicts itself.
    """
    path = reader.directory / "config.json"
    return config_from_json(reader.config, path, quantized=quantized)


def config_from_json(
    raw: dict[str, Any], path: Path, *, quantized: bool = False
) -> tuple[Format, HybridConfig]:
    """Understand what a config.json says, without a checkpoint around it.

    Args:
        raw: its content.
        path: named in errors.
        quantized: see `read_config`.

    Raises:
        InputError: see `read_config`.
    """
    model_type = raw.get("model_type")
    found = FORMATS.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise InputError(
            f"{path}: model_type {model_type!r} is not known; "
            f"known are {', '.join(sorted(FORMATS))}"
        )
    if raw.get("quantization_config") and not quantized:
        raise InputError(
            f"{path}: the checkpoint is quantized; start from the unquantized one, and quantize "
            "what comes of it"
        )
    layers = raw.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {layers}; no model has that many")
    for name in ("dtype", "torch_dtype"):
        dtype = raw.get(name)
        known = isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)
        if dtype is not None and not known:
            raise InputError(
                f"{path}: {name} is {dtype!r}; it must be a dtype's name, such as bfloat16"
            )
    try:
        # How transformers spells infinity in JSON; its own reader undoes it just so.
        decoded = PreTrainedConfig._decode_special_floats(deepcopy(raw))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about older spellings, which are read as they should
            config = found.to_hybrid(decoded)
        check_rope(config)
        return found, config
    except Exception as error:  # transformers' validation raises whatever the bad field provokes
        raise InputError(f"{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(cause, ValueError) and text else f"{type(cause).__name__}: {text}"
