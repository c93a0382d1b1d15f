"""The code that Granite's and Bamba's hybrids share: layers of a mixer and an MLP, with RoPE."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hybridize.checkpoints.formats.base import (
    Fit,
    replace_kind,
    require,
    require_layers,
    uniform,
    uniform_except_window,
)
from hybridize.checkpoints.formats.fields import (
    Raw,
    bool_field,
    dt_limits_field,
    int_field,
    int_or_auto_field,
    str_field,
)
from hybridize.checkpoints.formats.read_model import head_dim, num_kv_heads
from hybridize.modeling.layers.kinds import ATTENTION
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec

FULL, LINEAR = "full_attention", "linear_attention"

STOCK_FIELDS = {
    "num_hidden_layers": int_field(32),
    "num_attention_heads": int_field(32),
    "head_dim": int_field(None),
    "hidden_act": str_field("silu"),
    "attention_bias": bool_field(False),
    "mamba_n_heads": int_field(128),
    "mamba_d_head": int_or_auto_field(),
    "mamba_n_groups": int_field(1),
    "mamba_d_state": int_field(256),
    "mamba_d_conv": int_field(4),
    "mamba_expand": int_field(2),
    "mamba_conv_bias": bool_field(True, optional=True),
    "mamba_proj_bias": bool_field(False, optional=True),
    "time_step_limit": dt_limits_field(optional=True),
}
"""The fields that both formats have, with the same defaults."""

STOCK_NO_INFLUENCE = (
    "mamba_chunk_size", "time_step_min", "time_step_max", "time_step_floor", "time_step_rank",
    "use_mamba_kernels",
)  # fmt: skip
"""Fields of both formats that change no logit."""


def read_blocks(
    source: SimpleNamespace, kinds: Sequence[str], attention: AttentionSizes, mlp: MLPSizes
) -> list[BlockSizes]:
    """Return the blocks of a model.

    Args:
        source: the fields of config.json.
        kinds: `FULL` or `LINEAR` for every layer.
        attention: the sizes of the attention blocks.
        mlp: the sizes of the MLPs.

    Raises:
        ValueError: the sizes contradict each other.
    """
    width = source.mamba_expand * source.hidden_size
    if source.mamba_n_heads <= 0 or width % source.mamba_n_heads:
        raise ValueError(
            f"mamba_n_heads is {source.mamba_n_heads}; it must divide mamba_expand × hidden_size, "
            f"which is {width}"
        )
    head = source.mamba_d_head if source.mamba_d_head != "auto" else width // source.mamba_n_heads
    if head * source.mamba_n_heads != width:
        raise ValueError(
            f"mamba_n_heads × mamba_d_head is {source.mamba_n_heads * head}; it must be "
            f"mamba_expand × hidden_size, which is {width}"
        )
    low, high = source.time_step_limit or (0.0, float("inf"))
    mamba = MambaSizes(
        num_heads=source.mamba_n_heads,
        head_dim=head,
        n_groups=source.mamba_n_groups,
        d_state=source.mamba_d_state,
        conv_kernel=source.mamba_d_conv,
        conv_bias=bool(source.mamba_conv_bias),
        proj_bias=bool(source.mamba_proj_bias),
        dt_min=low,
        dt_max=None if high == float("inf") else high,
    )
    if source.hidden_act != "silu" and LINEAR in kinds:
        raise ValueError(f"hidden_act is {source.hidden_act!r}; Mamba-2 blocks need silu")
    blocks: list[BlockSizes] = []
    for kind in kinds:
        blocks += [mamba if kind == LINEAR else attention, mlp]
    return blocks


def read_attention(source: SimpleNamespace, **fields: Any) -> AttentionSizes:
    """Return the sizes of the attention blocks.

    Args:
        source: the fields of config.json.
        fields: further fields of `AttentionSizes`.
    """
    return AttentionSizes(
        num_heads=source.num_attention_heads,
        num_kv_heads=num_kv_heads(source),
        head_dim=head_dim(source),
        qkv_bias=source.attention_bias,
        out_bias=source.attention_bias,
        **fields,
    )


def fit_stock(spec: ModelSpec) -> Fit:
    """Adapt a model to what both formats can store.

    Raises:
        CannotStoreError: they cannot store the model.
    """
    require_layers(spec)
    require(
        ATTENTION in spec.layout,
        "without attention, the format's code fails with a cache; keep at least one attention "
        "block",
    )
    require(not spec.residual_in_fp32, "the format does not keep the residual stream in float32")
    attention, mamba = uniform_attention(spec), uniform(spec, MambaSizes)
    mlp = uniform(spec, MLPSizes)
    assert mlp is not None
    require(mlp.gated, "the format has gated MLPs only")
    require(not attention.qk_norm, "the format has no query/key norm")
    if mamba is not None:
        one_activation = mlp.activation == "silu"
        require(one_activation, "the format has one activation, silu, for the MLP and Mamba-2")
        require(mamba.dt_limit == (0.0, float("inf")), "the format has no limits of Δt")
        require(
            mamba.d_inner % spec.hidden_size == 0,
            "the Mamba-2 width must be a multiple of the hidden size, and "
            f"{mamba.d_inner} is not a multiple of {spec.hidden_size}",
        )
    exact, notes = True, []
    window = spec.sliding_window
    if window is not None and window < spec.max_position_embeddings:
        exact = False
        notes.append(
            f"the format has no sliding window, and the model has one of {window} tokens: the "
            f"logits are the same up to {window} tokens only"
        )
    bias = attention.qkv_bias or attention.out_bias
    attention = replace(attention, qkv_bias=bias, out_bias=bias, sliding_window=None)
    padded = pad_heads(attention, spec.hidden_size)
    if padded.num_heads != attention.num_heads:
        notes.append(
            f"{padded.num_heads - attention.num_heads} zero heads were added, so that heads × "
            "head_dim is the hidden size, as vLLM, SGLang and llama.cpp assume"
        )
    elif attention.num_heads * attention.head_dim != spec.hidden_size:
        notes.append(
            f"opens in transformers only: head_dim is {attention.head_dim}, and vLLM, SGLang and "
            "llama.cpp assume hidden size / heads"
        )
    return Fit(replace_kind(spec, padded), exact, tuple(notes))


def uniform_attention(spec: ModelSpec) -> AttentionSizes:
    """Return the sizes that all attention blocks share; some may lack the sliding window.

    Raises:
        CannotStoreError: they differ.
    """
    return replace(uniform_except_window(spec), sliding_window=spec.sliding_window)


def pad_heads(attention: AttentionSizes, hidden: int) -> AttentionSizes:
    """Return sizes with zero heads added, so that heads × head_dim is the hidden size.

    Heads are added to every key/value group. If equal groups are not possible in this way, groups
    are added as well. The sizes are returned unchanged if padding is not needed or not possible.
    """
    heads, rest = divmod(hidden, attention.head_dim)
    if rest or heads <= attention.num_heads:
        return attention
    group = attention.num_heads // attention.num_kv_heads
    for kv_heads in range(attention.num_kv_heads, heads + 1):
        if heads % kv_heads == 0 and heads // kv_heads >= group:
            return replace(attention, num_heads=heads, num_kv_heads=kv_heads)
    return attention


def written_mamba(spec: ModelSpec) -> Raw:
    """Return the Mamba-2 fields of config.json.

    A model without Mamba-2 blocks still needs values that pass the checks of its readers.
    ``time_step_limit`` is not written: (0, ∞) is the default, and transformers' cached decoding
    ignores other limits.
    """
    mamba = uniform(spec, MambaSizes)
    if mamba is None:
        attention = uniform_attention(spec)
        heads = attention.num_heads if spec.hidden_size % attention.num_heads == 0 else 1
        mamba = MambaSizes(heads, 2 * spec.hidden_size // heads, n_groups=1, d_state=128)
    return {
        "mamba_n_heads": mamba.num_heads,
        "mamba_d_head": mamba.head_dim,
        "mamba_n_groups": mamba.n_groups,
        "mamba_d_state": mamba.d_state,
        "mamba_d_conv": mamba.conv_kernel,
        "mamba_expand": mamba.d_inner // spec.hidden_size,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": mamba.conv_bias,
        "mamba_proj_bias": mamba.proj_bias,
    }


def written_attention(spec: ModelSpec) -> Raw:
    """Return the attention fields of config.json; no ``head_dim`` if readers can derive it."""
    attention = uniform_attention(spec)
    fields: Raw = {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "attention_bias": attention.qkv_bias,
        "attention_dropout": 0.0,
    }
    if attention.num_heads * attention.head_dim != spec.hidden_size:
        fields["head_dim"] = attention.head_dim
    return fields
