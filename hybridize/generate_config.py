"""The options of `hybridize generate`."""

from dataclasses import dataclass

from hybridize.option_types import Float, Integer
from hybridize.options import (
    Config,
    device_option,
    dtype_option,
    kv_cache_dtype_option,
    option,
    seed_option,
    ssm_cache_dtype_option,
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """How much text is generated, how tokens are sampled, and how the model runs."""

    max_new_tokens: int = option(Integer(1), 128, help="Maximum number of new tokens.")
    temperature: float = option(
        Float(0), 0.0, help="Sampling temperature; 0 means greedy decoding."
    )
    top_p: float = option(
        Float(0, 1, above=True),
        1.0,
        help="Sample from the most probable tokens whose probabilities add up to this.",
    )
    seed: int = seed_option()
    device: str = device_option()
    dtype: str = dtype_option(
        "Dtype of the weights and the computation; auto is float32 on a CPU, else the checkpoint's."
    )
    kv_cache_dtype: str = kv_cache_dtype_option()
    ssm_cache_dtype: str = ssm_cache_dtype_option()
