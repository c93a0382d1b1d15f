"""What the two stock hybrids with RoPE, Granite's and Bamba, have in common."""

from dataclasses import replace
from typing import Any

from hybridize.checkpoints.formats.base import (
    Fit,
    Raw,
    common_fields,
    replace_kind,
    require,
    require_layers,
    same_apart_from_window,
    uniform,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.layout import ATTENTION


def read_blocks(
    source: Any, kinds: list[str], attention: AttentionSizes, mlp: MLPSizes
) -> list[BlockSizes]:
    """Return the blocks of a checkpoint from transformers' configuration of it."""
    limit = source.time_step_limit or (0.0, float("inf"))
    mamba = MambaSizes(
        num_heads=source.mamba_n_heads,
        head_dim=source.mamba_d_head,
        n_groups=source.mamba_n_groups,
        d_state=source.mamba_d_state,
        conv_kernel=source.mamba_d_conv,
        conv_bias=source.mamba_conv_bias,
        proj_bias=source.mamba_proj_bias,
        dt_min=float(limit[0]),
        dt_max=None if limit[1] == float("inf") else float(limit[1]),
    )
    blocks: list[BlockSizes] = []
    for kind in kinds:
        blocks += [mamba if kind == "linear_attention" else attention, mlp]
    if source.hidden_act != "silu" and "linear_attention" in kinds:
        raise ValueError(f"hidden_act is {source.hidden_act!r}; Mamba-2 blocks need silu")
    return blocks


def read_attention(source: Any, **fields: Any) -> AttentionSizes:
    """Return the sizes of the attention blocks from transformers' configuration."""
    heads = source.num_attention_heads
    return AttentionSizes(
        num_heads=heads,
        num_kv_heads=source.num_key_value_heads,
        head_dim=getattr(source, "head_dim", None) or source.hidden_size // heads,
        qkv_bias=source.attention_bias,
        out_bias=source.attention_bias,
        **fields,
    )


def read_config(source: Any, blocks: list[BlockSizes], **fields: Any) -> HybridConfig:
    """Return the model's configuration from transformers' own."""
    return HybridConfig.from_blocks(
        blocks, **common_fields(source), norm_eps=source.rms_norm_eps, **fields
    )


def fit_stock(config: HybridConfig) -> Fit:
    """Adapt a model to what both stock hybrids can hold.

    Raises:
        CannotHoldError: neither can.
    """
    require_layers(config)
    require(
        ATTENTION in config.layout,
        "stock code fails with a cache unless at least one attention block is kept",
    )
    require(not config.residual_in_fp32, "its residual stream is not kept in float32")
    attention, mamba = uniform_attention(config), uniform(config, MambaSizes)
    mlp = uniform(config, MLPSizes)
    assert mlp is not None
    require(mlp.gated, "its MLP is gated")
    require(not attention.qk_norm, "it has no query/key norm")
    if mamba is not None:
        require(mlp.activation == "silu", "one activation, silu, serves the MLP and Mamba-2")
        require(mamba.dt_limit == (0.0, float("inf")), "its steps have no limits")
        require(
            mamba.d_inner % config.hidden_size == 0,
            f"its Mamba-2 width is a whole multiple of the hidden size, and {mamba.d_inner} is "
            f"not one of {config.hidden_size}",
        )
    exact, notes = True, []
    window = config.sliding_window
    if window is not None and window < config.max_position_embeddings:
        exact = False
        notes.append(
            f"attention sees beyond its sliding window of {window} tokens: "
            f"the same answers up to {window} tokens only"
        )
    bias = attention.qkv_bias or attention.out_bias
    attention = replace(attention, qkv_bias=bias, out_bias=bias, sliding_window=None)
    padded = pad_heads(attention, config.hidden_size)
    if padded.num_heads != attention.num_heads:
        notes.append(
            f"{padded.num_heads - attention.num_heads} zero heads were added, so that heads × head_dim "
            "is the hidden size, which is what vLLM, SGLang and llama.cpp assume"
        )
    elif attention.num_heads * attention.head_dim != config.hidden_size:
        notes.append(
            f"opens in transformers only: head_dim is {attention.head_dim}, and vLLM, SGLang and "
            "llama.cpp take it to be hidden size / heads"
        )
    return Fit(replace_kind(config, padded), exact, tuple(notes))


def uniform_attention(config: HybridConfig) -> AttentionSizes:
    """Return the sizes of all attention blocks, one of which may or may not have a window.

    Raises:
        CannotHoldError: they differ.
    """
    return replace(same_apart_from_window(config), sliding_window=config.sliding_window)


def pad_heads(attention: AttentionSizes, hidden: int) -> AttentionSizes:
    """Return sizes with zero heads added until heads × head_dim is the hidden size.

    Whole heads are added to each KV group; where the groups cannot all grow alike, whole
    groups are added as well. The same sizes come back where padding is not needed or cannot
    help.
    """
    heads, rest = divmod(hidden, attention.head_dim)
    if rest or heads <= attention.num_heads:
        return attention
    group = attention.num_heads // attention.num_kv_heads
    for kv_heads in range(attention.num_kv_heads, heads + 1):
        if heads % kv_heads == 0 and heads // kv_heads >= group:
            return replace(attention, num_heads=heads, num_kv_heads=kv_heads)
    return attention


def written_mamba(config: HybridConfig) -> Raw:
    """Return the Mamba-2 fields of config.json.

    A model without Mamba-2 blocks still needs values that pass its reader's checks. There is
    no ``time_step_limit``: (0, inf) is the default, and all that cached decoding honors.
    """
    mamba = uniform(config, MambaSizes)
    if mamba is None:
        attention = uniform_attention(config)
        heads = attention.num_heads if config.hidden_size % attention.num_heads == 0 else 1
        mamba = MambaSizes(heads, 2 * config.hidden_size // heads, n_groups=1, d_state=128)
    return {
        "mamba_n_heads": mamba.num_heads,
        "mamba_d_head": mamba.head_dim,
        "mamba_n_groups": mamba.n_groups,
        "mamba_d_state": mamba.d_state,
        "mamba_d_conv": mamba.conv_kernel,
        "mamba_expand": mamba.d_inner // config.hidden_size,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": mamba.conv_bias,
        "mamba_proj_bias": mamba.proj_bias,
    }


def written_attention(config: HybridConfig) -> Raw:
    """Return the attention fields of config.json; no head_dim where readers derive it."""
    attention = uniform_attention(config)
    fields: Raw = {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "attention_bias": attention.qkv_bias,
        "attention_dropout": 0.0,
    }
    if attention.num_heads * attention.head_dim != config.hidden_size:
        fields["head_dim"] = attention.head_dim
    return fields
