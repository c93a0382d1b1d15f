"""Load the checkpoints to evaluate."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridize.errors import InputError

Backend = Literal["hybridize", "transformers"]


def load(
    directory: Path, *, backend: Backend, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with its tokenizer.

    Args:
        directory: where it lies.
        backend: ``"hybridize"`` for this package's own model, ``"transformers"`` for the class
            that transformers has for it.
        device: where the weights go.
        dtype: what they are held in; the checkpoint's own if None.
    """
    if backend == "transformers":
        return _load_stock(directory, device, dtype)
    from hybridize.modeling.load import load_model, load_tokenizer

    return load_model(directory, dtype=dtype, device=device), load_tokenizer(directory)


def _load_stock(
    directory: Path, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM

    from hybridize.modeling.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
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
    return model.to(device).eval(), tokenizer
