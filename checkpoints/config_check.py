"""Checking a config.json with transformers, before weights are loaded.

The formats read config.json without transformers, because importing it takes seconds. Commands that
load weights need transformers anyway. They also check the file with its configuration class, and
the RoPE parameters with its RoPE functions.
"""

import warnings
from pathlib import Path
from typing import Any

from hybridize.checkpoints.special_floats import decode_special_floats
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.rope import check_rope
from hybridize.modeling.model_spec import ModelSpec


def checked_config(spec: ModelSpec, raw: dict[str, Any], path: Path) -> HybridConfig:
    """Return the configuration of a model in memory, if transformers accepts its config.json.

    Args:
        spec: the model, as its format has read it.
        raw: the content of config.json.
        path: config.json; error messages name it.

    Raises:
        InputError: transformers does not accept it.
    """
    from transformers import CONFIG_MAPPING

    model_type = raw["model_type"]
    # Models accept more spellings of a dtype than the configuration class does.
    fields = {name: value for name, value in raw.items() if name not in ("dtype", "torch_dtype")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about older spellings, which are read correctly
            if model_type == HybridConfig.model_type:
                HybridConfig.from_dict(decode_special_floats(fields))
            elif model_type in CONFIG_MAPPING:
                CONFIG_MAPPING[model_type].from_dict(decode_special_floats(fields))
        config = HybridConfig.from_spec(spec)
        check_rope(config)
        return config
    except Exception as error:  # every wrong field makes transformers raise another type
        raise InputError(f"{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(cause, ValueError) and text else f"{type(cause).__name__}: {text}"
