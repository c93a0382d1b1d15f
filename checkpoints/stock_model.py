"""Opening a checkpoint with transformers' own class, to compare it with hybridize's model."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def is_stock(model_type: str) -> bool:
    """Return whether the installed transformers has a language model of this ``model_type``.

    It has one for ``hybridize`` as well, which hybridize itself registers.
    """
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def load_stock_model(directory: Path) -> PreTrainedModel:
    """Open a checkpoint with ``AutoModelForCausalLM``, in float32 on the CPU, for inference.

    No remote code runs, nothing is downloaded, and nothing is unpickled.

    Raises:
        Exception: whatever transformers raises for a checkpoint that it cannot open.
    """
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about older spellings and slower paths
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
    return model.eval()


@contextmanager
def quiet_transformers(*, progress: bool = False) -> Iterator[None]:
    """Let transformers print errors only.

    Args:
        progress: whether it may show progress bars.
    """
    logging: Any = transformers.logging
    with ExitStack() as undo:
        undo.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        if not progress and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            undo.callback(logging.enable_progress_bar)
        yield
