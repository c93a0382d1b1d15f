"""Load a checkpoint with hybridize's own model or with the model class of transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.errors import InputError
from hybridize.file_names import utf8_path
from hybridize.modeling.cache.format import CacheFormat


def load_model_and_tokenizer(
    directory: Path,
    *,
    backend: str,
    device: torch.device,
    dtype: torch.dtype | None,
    cache_format: CacheFormat,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with its tokenizer; see `load_with_backend`."""
    model = load_with_backend(
        directory, backend=backend, device=device, dtype=dtype, cache_format=cache_format
    )
    return model, load_tokenizer(directory)


def load_with_backend(
    directory: Path,
    *,
    backend: str,
    device: torch.device,
    dtype: torch.dtype | None,
    cache_format: CacheFormat,
) -> PreTrainedModel:
    """Load a checkpoint's model, in evaluation mode.

    Args:
        directory: the checkpoint.
        backend: ``"hybridize"`` or ``"transformers"``.
        device: the device of the weights.
        dtype: the dtype of the weights; the checkpoint's own if None.
        cache_format: the storage of the cache; for ``"hybridize"`` only.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    if backend == "transformers":
        return _load_with_transformers(directory, device, dtype)
    return load_model(directory, dtype=dtype, device=device, cache_format=cache_format)


def _load_with_transformers(
    directory: Path, device: torch.device, dtype: torch.dtype | None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        with utf8_path(directory) as name:
            model: Any = AutoModelForCausalLM.from_pretrained(
                name,
                dtype="auto" if dtype is None else dtype,
                trust_remote_code=False,
                use_safetensors=True,  # never unpickle
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{directory}: transformers cannot load it: {reason}") from error
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
