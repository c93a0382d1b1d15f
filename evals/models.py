"""Load the checkpoints to evaluate."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridize.errors import InputError
from hybridize.modeling.cache.compact import CacheFormat

Backend = Literal["hybridize", "transformers"]


def load(
    directory: Path,
    *,
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype | None,
    cache_format: CacheFormat,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with its tokenizer.

    Args:
        directory: where it lies.
        backend: ``"hybridize"`` for this package's own model, ``"transformers"`` for the class
            that transformers has for it.
        device: where the weights go.
        dtype: what they are held in; the checkpoint's own if None.
        cache_format: what its cache is stored in; for ``"hybridize"`` alone.

    Raises:
        InputError: the checkpoint cannot be read, or transformers has no such cache.
    """
    from hybridize.checkpoints.load import load_tokenizer

    model = load_bare(
        directory, backend=backend, device=device, dtype=dtype, cache_format=cache_format
    )
    return model, load_tokenizer(directory)


def load_bare(
    directory: Path,
    *,
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype | None,
    cache_format: CacheFormat,
) -> PreTrainedModel:
    """Load a checkpoint as `load` does, without a tokenizer."""
    if backend == "transformers":
        if cache_format.compact:
            raise InputError(
                "--kv-cache-dtype and --ssm-cache-dtype are hybridize's own; leave --backend "
                "transformers out"
            )
        return _load_stock(directory, device, dtype)
    from hybridize.checkpoints.load import load_model

    return load_model(directory, dtype=dtype, device=device, cache_format=cache_format)


def _load_stock(
    directory: Path, device: torch.device, dtype: torch.dtype | None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never unpickle
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{directory}: transformers cannot load it: {reason}") from error
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
