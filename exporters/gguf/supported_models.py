"""The models that llama.cpp's Granite hybrid supports, and why it does not support the others."""

from collections.abc import Iterator

from hybridize.checkpoints.formats.base import (
    CannotStoreError,
    require_layers,
    uniform,
    uniform_except_window,
)
from hybridize.exporters.exportable_rope import EXPORTABLE_ROPE_TYPES, rope_type
from hybridize.modeling.layers.kinds import ATTENTION, MAMBA
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec


def unsupported_features(spec: ModelSpec) -> list[str]:
    """Return the features that llama.cpp's ``granitehybrid`` does not support; empty if none.

    Each comes with a remedy where there is one. The architecture has layers of one mixer and one
    gated MLP, and one size per kind of block. Its Mamba-2 blocks are twice as wide as the hidden
    size and have no projection biases (llama.cpp's
    ``src/models/granite-hybrid.cpp`` and ``mamba-base.cpp``).
    """
    try:
        require_layers(spec)
        mamba, mlp = uniform(spec, MambaSizes), uniform(spec, MLPSizes)
        attention = uniform_except_window(spec) if ATTENTION in spec.layout else None
    except CannotStoreError as error:
        return [str(error)]
    assert mlp is not None
    found = list(_mlp(mlp))
    if mamba is None:
        found.append("it has no Mamba-2 block; llama.cpp's own converter takes Transformers")
    else:
        found += _mamba(mamba, spec.hidden_size)
    if attention is None:
        found.append("it has no attention block; convert with `attention=1` or more")
    else:
        found += _attention(attention, spec)
    return found


def _mamba(mamba: MambaSizes, hidden: int) -> Iterator[str]:
    if mamba.d_inner != 2 * hidden:
        yield (
            f"its Mamba-2 blocks have width {mamba.d_inner}, and llama.cpp needs twice the hidden "
            f"size, {2 * hidden}; convert with `ssm_expand=2`"
        )
    if mamba.proj_bias:
        yield "its Mamba-2 projections have biases; convert with `ssm_bias=False`"
    if mamba.dt_limit != (0.0, float("inf")):
        yield f"the dt of its Mamba-2 blocks is limited to {mamba.dt_limit}"


def _attention(attention: AttentionSizes, spec: ModelSpec) -> Iterator[str]:
    if attention.qk_norm:
        yield "it has query/key norms"
    window = spec.sliding_window
    if window is not None and window < spec.max_position_embeddings:
        yield (
            f"it has a sliding window of {window} tokens; convert with `format=granitemoehybrid`, "
            "which drops the window"
        )
    if attention.rope and rope_type(spec) not in EXPORTABLE_ROPE_TYPES:
        supported = ", ".join(EXPORTABLE_ROPE_TYPES)
        yield f"its RoPE type is {rope_type(spec)!r}; GGUF files can have {supported}"


def _mlp(mlp: MLPSizes) -> Iterator[str]:
    if not mlp.gated or mlp.activation != "silu":
        kind = "gated" if mlp.gated else "ungated"
        yield f"its MLP is {kind} with {mlp.activation}, and llama.cpp needs gated with silu"


def layer_count(spec: ModelSpec) -> int:
    """Return the number of layers, each of one mixer and one MLP."""
    return len(spec.layout) // 2


def mamba_layers(spec: ModelSpec) -> list[bool]:
    """Return, for each layer, whether its mixer is Mamba-2."""
    return [letter == MAMBA for letter in spec.layout[::2]]
