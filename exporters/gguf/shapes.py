"""Which models llama.cpp's Granite hybrid can be, and what is in the way of the others."""

from collections.abc import Iterator

from hybridize.checkpoints.formats.base import (
    CannotHoldError,
    require_layers,
    same_apart_from_window,
    uniform,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.layout import ATTENTION, MAMBA

STEADY_ROPE = ("default", "linear", "llama3", "yarn")
"""Types whose frequencies do not depend on the length: a file holds them as factors."""


def obstacles(config: HybridConfig) -> list[str]:
    """Return what llama.cpp's ``granitehybrid`` has no place for, each with what to do.

    It holds layers of a mixer and a gated MLP. All layers share one shape per kind, and its
    Mamba-2 is twice as wide as the model and has no projection biases (``src/models/
    granite-hybrid.cpp`` and ``mamba-base.cpp`` there).
    """
    try:
        require_layers(config)
        sizes = uniform(config, MambaSizes), uniform(config, MLPSizes)
        attention = same_apart_from_window(config) if ATTENTION in config.layout else None
    except CannotHoldError as error:
        return [str(error)]
    mamba, mlp = sizes
    assert mlp is not None
    found = list(_mlp(mlp))
    if mamba is None:
        found.append("it has no Mamba-2 block; llama.cpp's own converter takes Transformers")
    else:
        found += _mamba(mamba, config.hidden_size)
    if attention is None:
        found.append("it has no attention block; keep at least one (--attention 1)")
    else:
        found += _attention(attention, config)
    return found


def _mamba(mamba: MambaSizes, hidden: int) -> Iterator[str]:
    if mamba.d_inner != 2 * hidden:
        yield (
            f"its Mamba-2 blocks are {mamba.d_inner} wide, and llama.cpp's are twice the hidden "
            f"size, {2 * hidden}; convert with --ssm-expand 2"
        )
    if mamba.proj_bias:
        yield (
            "its Mamba-2 projections have biases, which have no place there; convert with "
            "--no-ssm-bias"
        )
    if mamba.dt_limit != (0.0, float("inf")):
        yield f"its Mamba-2 steps are limited to {mamba.dt_limit}, which has no place there"


def _attention(attention: AttentionSizes, config: HybridConfig) -> Iterator[str]:
    if attention.qk_norm:
        yield "its query/key norm has no place there"
    window = config.sliding_window
    if window is not None and window < config.max_position_embeddings:
        yield (
            f"its sliding window of {window} tokens has no place there; give it up with convert "
            "--format granitemoehybrid"
        )
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if attention.rope and kind not in STEADY_ROPE:
        yield f"its RoPE is of the type {kind!r}, whose frequencies depend on the length"


def _mlp(mlp: MLPSizes) -> Iterator[str]:
    if not mlp.gated or mlp.activation != "silu":
        kind = "gated" if mlp.gated else "ungated"
        yield f"its MLP is {kind} with {mlp.activation}, and llama.cpp's is gated with silu"


def layer_count(config: HybridConfig) -> int:
    """Return how many layers of a mixer and an MLP a model is."""
    return len(config.layout) // 2


def mamba_layers(config: HybridConfig) -> list[bool]:
    """Return, per layer, whether its mixer is Mamba-2."""
    return [letter == MAMBA for letter in config.layout[::2]]
