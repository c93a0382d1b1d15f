"""The formats read a config.json as transformers' own configuration classes do."""

import dataclasses
import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hybridize.checkpoints.config_check import checked_config
from hybridize.checkpoints.formats import FORMATS
from hybridize.checkpoints.special_floats import decode_special_floats, encode_special_floats
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ACTIVATIONS, ModelSpec
from hybridize.modeling.rope_parameters import ROPE_TYPES
from tiny import ARCHITECTURES, TRANSFORMERS, stock_config

REMOVED = object()
WHOLE_HEADS = (*TRANSFORMERS, "granitemoehybrid")
"""The architectures whose code for plain RoPE ignores ``partial_rotary_factor``."""
DERIVED_DEFAULTS = {"head_dim", "layer_types", "max_position_embeddings"}
"""Fields that some of transformers' classes do not declare, although their models read them."""


def config_class(model_type: str) -> type[PreTrainedConfig]:
    return HybridConfig if model_type == "hybridize" else CONFIG_MAPPING[model_type]


@pytest.mark.parametrize("model_type", FORMATS)
def test_defaults_equal_those_of_transformers(model_type):
    cls = config_class(model_type)
    declared = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, field in FORMATS[model_type].fields.items():
        if name not in declared:
            assert name in DERIVED_DEFAULTS or name in cls.attribute_map, name
        else:
            assert field.default == declared[name], name


def test_activations_and_rope_types_are_those_of_transformers():
    assert set(ACT2FN) == ACTIVATIONS
    assert {"default", *ROPE_INIT_FUNCTIONS} == set(ROPE_TYPES)


SPECIAL = st.recursive(
    st.floats() | st.integers() | st.text(max_size=3) | st.sampled_from(["Infinity", "NaN"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("__float__"), inner, max_size=2)
    ),
)


@given(SPECIAL)
def test_special_floats_are_spelled_as_in_transformers(value):
    for ours, theirs in (
        (encode_special_floats, PreTrainedConfig._encode_special_floats),
        (decode_special_floats, PreTrainedConfig._decode_special_floats),
    ):
        assert json.dumps(ours(value)) == json.dumps(theirs(deepcopy(value)))


# The reference: the same model, built from the attributes of transformers' configuration.


def reference(model_type: str, raw: dict[str, Any]) -> ModelSpec:
    raw = deepcopy(raw)
    # Models accept these spellings, but the configuration classes do not.
    if isinstance(raw.get("torch_dtype"), str):
        raw["torch_dtype"] = raw["torch_dtype"].removeprefix("torch.")
    if raw.get("torch_dtype") == "auto":
        del raw["torch_dtype"]
    source = config_class(model_type).from_dict(raw)
    if hasattr(source, "rope_parameters"):
        source.standardize_rope_params()  # as models do before they compute frequencies
        rope = source.rope_parameters
        plain = model_type in WHOLE_HEADS and rope.get("rope_type") == "default"
        if plain and rope.get("partial_rotary_factor") != 1.0:
            rope.pop("partial_rotary_factor", None)
    return {
        "granitemoehybrid": granite_reference,
        "bamba": bamba_reference,
        "nemotron_h": nemotron_reference,
        "mamba2": mamba2_reference,
    }.get(model_type, transformer_reference)(source)


def shared(source: Any) -> dict[str, Any]:
    names = (
        "vocab_size", "hidden_size", "max_position_embeddings", "tie_word_embeddings",
        "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
    )  # fmt: skip
    dtype = None if source.dtype is None else str(source.dtype).removeprefix("torch.")
    return {n: getattr(source, n) for n in names if hasattr(source, n)} | {"dtype": dtype}


def transformer_reference(source: Any) -> ModelSpec:
    kind = source.model_type
    bias = kind in ("llama", "qwen3") and source.attention_bias
    attention = AttentionSizes(
        num_heads=source.num_attention_heads,
        num_kv_heads=source.num_key_value_heads,
        head_dim=getattr(source, "head_dim", None)
        or source.hidden_size // source.num_attention_heads,
        qkv_bias=kind == "qwen2" or bias,
        out_bias=bias,
        qk_norm=kind == "qwen3",
        sliding_window=None if kind == "llama" else source.sliding_window,
    )
    mlp = MLPSizes(
        source.intermediate_size, source.hidden_act, bias=kind == "llama" and source.mlp_bias
    )
    types = getattr(source, "layer_types", None) or ["own"] * source.num_hidden_layers
    blocks = []
    for layer in types:
        full = layer == "full_attention"
        blocks += [replace(attention, sliding_window=None) if full else attention, mlp]
    return ModelSpec(
        tuple(blocks), **shared(source), norm_eps=source.rms_norm_eps,
        rope_parameters=source.rope_parameters,
    )  # fmt: skip


def stock_blocks(source: Any, kinds: list[str], mlp: MLPSizes, **fields: Any) -> tuple:
    low, high = source.time_step_limit or (0.0, math.inf)
    mamba = MambaSizes(
        source.mamba_n_heads, source.mamba_d_head, source.mamba_n_groups, source.mamba_d_state,
        source.mamba_d_conv, bool(source.mamba_conv_bias), bool(source.mamba_proj_bias),
        dt_min=low, dt_max=None if high == math.inf else high,
    )  # fmt: skip
    attention = AttentionSizes(
        source.num_attention_heads,
        source.num_key_value_heads,
        getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads,
        source.attention_bias,
        source.attention_bias,
        **fields,
    )
    return tuple(
        block
        for kind in kinds
        for block in (mamba if kind == "linear_attention" else attention, mlp)
    )


def granite_reference(source: Any) -> ModelSpec:
    assert not source.num_local_experts
    blocks = stock_blocks(
        source,
        source.layer_types,
        MLPSizes(source.shared_intermediate_size, source.hidden_act),
        scale=source.attention_multiplier,
        rope=source.position_embedding_type == "rope",
    )
    return ModelSpec(
        blocks, **shared(source), norm_eps=source.rms_norm_eps,
        rope_parameters=source.rope_parameters,
        embedding_multiplier=source.embedding_multiplier,
        residual_multiplier=source.residual_multiplier, logits_scaling=source.logits_scaling,
    )  # fmt: skip


def bamba_reference(source: Any) -> ModelSpec:
    mlp = MLPSizes(source.intermediate_size, source.hidden_act, bias=source.mlp_bias)
    return ModelSpec(
        stock_blocks(source, source.layers_block_type, mlp), **shared(source),
        norm_eps=source.rms_norm_eps, rope_parameters=source.rope_parameters,
    )  # fmt: skip


def nemotron_reference(source: Any) -> ModelSpec:
    sizes = {
        "full_attention": AttentionSizes(
            source.num_attention_heads, source.num_key_value_heads, source.head_dim, rope=False
        ),
        "linear_attention": MambaSizes(
            source.mamba_num_heads, source.mamba_head_dim, source.n_groups, source.ssm_state_size,
            source.conv_kernel, source.use_conv_bias, source.use_bias, dt_min=source.time_step_min,
        ),
        "mlp": MLPSizes(
            source.intermediate_size, source.mlp_hidden_act, gated=False, bias=source.mlp_bias
        ),
    }  # fmt: skip
    fields = shared(source) | {"tie_word_embeddings": False}
    blocks = tuple(sizes[kind] for kind in source.layers_block_type)
    return ModelSpec(blocks, **fields, norm_eps=source.layer_norm_epsilon)


def mamba2_reference(source: Any) -> ModelSpec:
    low, high = source.time_step_limit
    sizes = MambaSizes(
        source.num_heads, source.head_dim, source.n_groups, source.state_size, source.conv_kernel,
        source.use_conv_bias, source.use_bias, low, None if high == math.inf else high,
    )  # fmt: skip
    return ModelSpec(
        (sizes,) * source.num_hidden_layers, **shared(source), norm_eps=source.layer_norm_epsilon,
        residual_in_fp32=source.residual_in_fp32,
    )  # fmt: skip


ROPE_VALUES = [
    None,
    {},
    {"rope_theta": 500.0},
    {"rope_type": "default", "rope_theta": 1000000},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 4, "rope_theta": 10.0},
    {"type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "rope_theta": 500000.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    {"rope_type": "linear"},
    {"rope_type": "llama3", "factor": 8.0},
    [],
    "linear",
]  # fmt: skip
OTHER_VALUES: dict[str, list[Any]] = {
    "vocab_size": [64, 7, "64", None, True],
    "tie_word_embeddings": [True, False, None, 1],
    "num_key_value_heads": [1, 2, 4, None, 3, 2.0],
    "num_attention_heads": [4, 8, 0, None],
    "head_dim": [4, 8, 12, None],
    "hidden_act": ["gelu", "silu", "relu2", None],
    "rms_norm_eps": [1e-3, 0, None],
    "layer_norm_epsilon": [1e-3, 0, None],
    "max_position_embeddings": [32, 512, None, -1],
    "initializer_range": [0.5, 1, None],
    "bos_token_id": [0, None, "1"],
    "eos_token_id": [[1, 2], 3, None, "2"],
    "pad_token_id": [0, -1, None, 64],
    "use_cache": [False, True, "no"],
    "dtype": ["float16", "bfloat16", None],
    "torch_dtype": ["float32", "torch.bfloat16", "auto", None],
    "rope_parameters": ROPE_VALUES,
    "rope_scaling": ROPE_VALUES,
    "rope_theta": [1e6, 300, None],
    "partial_rotary_factor": [0.5, 1.0, None],
    "original_max_position_embeddings": [16, 64, None],
    "attention_bias": [True, False, None],
    "mlp_bias": [True, False, 0],
    "use_sliding_window": [True, False, None],
    "sliding_window": [5, None, 5.0],
    "max_window_layers": [0, 2, 99, None],
    "position_embedding_type": ["rope", None, "alibi"],
    "attention_multiplier": [1, 0.5, None, "x"],
    "embedding_multiplier": [12, 0.5, None],
    "logits_scaling": [3, 0, 0.5],
    "residual_multiplier": [1, 0.25],
    "mamba_d_head": ["auto", 8, None],
    "mamba_n_groups": [1, 2, 3],
    "mamba_conv_bias": [True, False, None],
    "mamba_proj_bias": [True, False, None],
    "mamba_d_conv": [2, 4, 0],
    "time_step_limit": [None, [0.0, math.inf], [0.01, 0.2], [0, 1], [0.5]],
    "time_step_min": [0.5, 0, 1e-9],
    "attn_layer_indices": [[], [0, 2], None, [1.0]],
    "layers_block_type": [None, ["mamba", "mlp", "attention"], ["full_attention"], "M*"],
    "hybrid_override_pattern": ["M*-", "M*", ""],
    "mamba_dt_min": [0.25],
    "n_groups": [1, 2, 4],
    "use_bias": [True, False, None],
    "use_conv_bias": [True, False],
    "residual_in_fp32": [True, False],
    "num_hidden_layers": [3, 4, 0],
}  # fmt: skip
LAYER_TYPES = {
    name: [None, ["full_attention"] * 4, ["attention", "sliding_attention"] * 2, ["moe"]]
    for name in TRANSFORMERS
} | {
    "granitemoehybrid": [None, ["mamba", "attention", "mamba"], ["linear_attention"] * 3, ["x"]],
    "nemotron_h": [["mamba", "mlp", "attention"], None, 3],
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=250)
@given(data=st.data())
def test_configurations_are_read_as_transformers_reads_them(model_type, data):
    """With fields removed, older spellings and odd values: the same model, or both refuse it."""
    raw = json.loads(stock_config(model_type).to_json_string(use_diff=False))
    raw = decode_special_floats(raw)
    values = dict(OTHER_VALUES)
    if model_type in LAYER_TYPES:
        values["layer_types"] = LAYER_TYPES[model_type]
    for name in data.draw(st.lists(st.sampled_from(sorted(values)), max_size=4, unique=True)):
        value = data.draw(st.sampled_from([REMOVED, *values[name]]))
        raw.pop(name, None)
        if value is not REMOVED:
            raw[name] = deepcopy(value)
    try:
        expected = reference(model_type, raw)
    except Exception:  # every wrong field makes transformers raise another type
        expected = None
    try:
        spec = FORMATS[model_type].to_spec(deepcopy(raw))
        checked_config(spec, raw, Path("config.json"))
    except (ValueError, InputError):
        spec = None
    if expected is None:
        assert spec is None
    elif spec is not None:
        assert spec == expected
    else:  # transformers accepts it and the format refuses it: only for these known reasons
        with pytest.raises((ValueError, InputError)) as caught:
            checked_config(FORMATS[model_type].to_spec(deepcopy(raw)), raw, Path("config.json"))
        assert any(word in str(caught.value) for word in STRICTER), caught.value


STRICTER = (
    "layer_types",
    "hidden_act",
    "rope_parameters do not describe",
    "rotates whole heads",
    "must be even",
)
"""Words of the errors where the formats are stricter than transformers."""
