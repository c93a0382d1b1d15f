"""Random config.json files of every source architecture, for `test_source_zoo.py`.

The fields come from transformers' own configuration classes, so that a field that a new version
adds is varied too. A value is drawn by the field's name, or by the type of its default. Fields that
the class lacks are added as well: those of the other architectures, and those that other programs
write.
"""

import dataclasses
from copy import deepcopy
from random import Random
from typing import Any

from transformers import CONFIG_MAPPING

from hybridize.checkpoints.formats.known_fields import NO_INFLUENCE

Raw = dict[str, Any]

VOCAB = 24
_SHARED = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_LAYERS = {"num_hidden_layers": 2, "intermediate_size": 20}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 2}
_BASES: dict[str, Raw] = {
    "llama": _SHARED | _LAYERS,
    "mistral": _SHARED | _LAYERS | {"sliding_window": 12},
    "qwen2": _SHARED | _LAYERS,
    "qwen3": _SHARED | _LAYERS | {"head_dim": 6},
    "granitemoehybrid": _SHARED
    | _LAYERS
    | _MAMBA
    | {
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 12,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
    },
    "bamba": _SHARED | _LAYERS | _MAMBA | {"attn_layer_indices": [1]},
    "nemotron_h": _SHARED
    | {
        "hybrid_override_pattern": "M*-",
        "head_dim": 4,
        "intermediate_size": 12,
        "ssm_state_size": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
    "mamba2": {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 4,
        "n_groups": 2,
        "pad_token_id": None,
    },
}
MODEL_TYPES = tuple(_BASES)

_VALUES: dict[str, list[Any]] = {
    "vocab_size": [VOCAB],  # the tests' tokens must exist
    "hidden_size": [8, 16, 24],
    "num_attention_heads": [1, 2, 4, 8],
    "num_key_value_heads": [1, 2, 4, None],
    "num_hidden_layers": [1, 2, 3],
    "intermediate_size": [1, 12],
    "head_dim": [2, 4, 5, 6, 8, None],
    "hidden_act": ["silu", "gelu", "relu", "gelu_pytorch_tanh", "relu2", "swish"],
    "mlp_hidden_act": ["relu2", "silu", "relu"],
    "mamba_hidden_act": ["silu", "gelu"],
    "max_position_embeddings": [8, 20, 64],
    "layer_types": [
        None,
        ["full_attention", "full_attention"],
        ["full_attention", "sliding_attention"],
        ["sliding_attention", "sliding_attention"],
        ["attention", "attention"],
        ["linear_attention", "full_attention"],
        ["mamba", "mamba"],
        ["full_attention"],
        ["chunked_attention", "full_attention"],
    ],
    "layers_block_type": [["mamba", "attention"], ["linear_attention", "mlp", "full_attention"]],
    "attn_layer_indices": [None, [], [0], [0, 1], [1, 5]],
    "rope_parameters": [None],  # `_rope` draws the others
    "rms_norm_eps": [1e-6, 1e-2, 0.5],
    "layer_norm_epsilon": [1e-6, 1e-2, 0.5],
    "sliding_window": [None, 1, 4, 9, 100],
    "max_window_layers": [0, 1, 2, 28],
    "pad_token_id": [None, 0, 3, -1],
    "bos_token_id": [None, 0],
    "eos_token_id": [None, 2, [2, 3]],
    "attention_multiplier": [1, 0.1, 0.5, None, 0],
    "embedding_multiplier": [12, 0.5, 1],
    "residual_multiplier": [0.22, 1, 2.0],
    "logits_scaling": [8, 0.5, 1],
    "position_embedding_type": [None, "rope", "nope", "alibi"],
    "num_local_experts": [0, 0, 2, None],
    "num_experts_per_tok": [0, 1],
    "mamba_n_heads": [2, 4, 8],
    "mamba_d_head": ["auto", 4, 8, 16],
    "mamba_n_groups": [1, 2, 4],
    "mamba_d_state": [1, 4, 5],
    "mamba_d_conv": [1, 2, 4],
    "mamba_expand": [1, 2],
    "mamba_chunk_size": [1, 4, 7, 256],
    "chunk_size": [1, 4, 7, 256],
    "time_step_limit": [None, [0.0, 0.1], [0.05, 1.0], [0.0, {"__float__": "Infinity"}]],
    "time_step_min": [1e-3, 0.05, 0.5],
    "time_step_max": [0.1, 0.01],
    "time_step_floor": [1e-4, 0.5],
    "time_step_rank": ["auto", 2],
    "num_heads": [2, 4, 8],
    "state_size": [1, 4, 5],
    "ssm_state_size": [1, 4, 5],
    "mamba_num_heads": [2, 4],
    "mamba_head_dim": [4, 8],
    "n_groups": [1, 2, 4],
    "expand": [1, 2, 4],
    "conv_kernel": [1, 2, 4],
    "mtp_layers_block_type": [None, ["mlp"]],
    "initializer_range": [0.02, 0.5],
    "attention_dropout": [0.0, 0.3],
    "hidden_dropout": [0.0, 0.3],
    "dtype": ["float32", "bfloat16", None],
    "mamba_ssm_cache_dtype": ["float32", "bfloat16"],
    "architectures": [None, ["LlamaForCausalLM"], ["AnyForSequenceClassification"]],
    "transformers_version": [None, "4.30.0"],
    "id2label": [None, {"0": "a"}],
    "label2id": [None, {"a": 0}],
    "problem_type": [None, "regression"],
}
"""Values by field. Some contradict the others or are not supported: they must be refused."""

_OTHERS: dict[str, list[Any]] = {
    # Fields that transformers reads from any configuration, although no class declares them.
    "torch_dtype": ["float32", "torch.bfloat16", "auto", None],
    "is_causal": [True, False],
    "attention_chunk_size": [None, 4],
    "per_layer_config": [None, {"0": {"rms_norm_eps": 0.7}}, {"1": {"skip": ["mlp"]}}],
    "kv_sharing_modes": [None, ["store", "reuse"]],
    "text_config": [None, {"hidden_size": 8}],
    "num_hidden_layers": [1, 2, 3],
    "tie_encoder_decoder": [False, True],
    "is_decoder": [False, True],
    "output_attentions": [False],
    "attn_implementation": ["eager", "sdpa"],
    "hybrid_override_pattern": ["M*-", "*", "*-M", "MM-", "E*", "M", "M*-M*-"],
    "mamba_dt_min": [0.2],
    "mamba_dt_max": [0.05],
    "default_theta": [77.0],
    "rope_theta": [10000.0, 50, 1e6, None],
    "partial_rotary_factor": [0.5, 1.0, None],
    "original_max_position_embeddings": [8, 16, None],
    "use_bidirectional_attention": [False, True],
    # Fields of other programs.
    "pretraining_tp": [1, 4],
    "unsloth_version": ["2025.1"],
    "rope_interleaved": [False, True],
    "logit_softcap": [None, 30.0],
    "scale_emb": [12],
    "qk_norm": [False, True],
    "_name_or_path": ["somewhere/else"],
    "tokenizer_class": ["LlamaTokenizer"],
    "max_sequence_length": [2048],
    "normalization_function": ["rmsnorm"],
    "temperature": [0.7],
}


_REMOVED = (
    "max_position_embeddings", "num_key_value_heads", "head_dim", "sliding_window", "pad_token_id",
    "bos_token_id", "layer_types", "attn_layer_indices", "num_local_experts", "mamba_d_head",
    "position_embedding_type", "n_groups", "num_experts_per_tok",
)  # fmt: skip
"""Fields that some files lack; without the others, the model would be large."""


_THETAS = [10000.0, 100, 1e6]
_FACTORS = [1.0, 2.0, 4, 8.0]
_ORIGINALS = [8, 16, 32]
_ROPE_TYPES: dict[str, tuple[dict[str, list[Any]], dict[str, list[Any]]]] = {
    "default": ({}, {"mrope_section": [[1, 1]], "factor": _FACTORS}),
    "linear": ({"factor": _FACTORS}, {"original_max_position_embeddings": _ORIGINALS}),
    "dynamic": ({"factor": _FACTORS}, {"original_max_position_embeddings": _ORIGINALS}),
    "yarn": (
        {"factor": _FACTORS},
        {
            "original_max_position_embeddings": _ORIGINALS,
            "attention_factor": [0.5, 1.2, None],
            "beta_fast": [1, 2, 8, 32.0],
            "beta_slow": [1, 2],
            "mscale": [0.7, 1.0, 0],
            "mscale_all_dim": [0.3, 1.0],
            "truncate": [True, False],
            "finetuned": [True],
        },
    ),
    "longrope": (
        {"short_factor": [], "long_factor": []},  # `_rope` fills them
        {
            "original_max_position_embeddings": _ORIGINALS,
            "factor": _FACTORS,
            "attention_factor": [0.5, 1.2],
        },
    ),
    "llama3": (
        {"factor": _FACTORS, "low_freq_factor": [1.0], "high_freq_factor": [2.0, 4.0]},
        {"original_max_position_embeddings": _ORIGINALS},
    ),
    "proportional": ({}, {"factor": _FACTORS}),
    "su": ({"factor": _FACTORS}, {}),
}
"""Required and optional keys of RoPE parameters, with their values, by type."""


def _rope(rng: Random, head_dim: int) -> Raw:
    """Draw fields of RoPE: a dictionary of one type, in either place, and values beside it."""
    kind = rng.choice(sorted(_ROPE_TYPES))
    required, optional = _ROPE_TYPES[kind]
    optional = optional | {"rope_theta": _THETAS}
    rope: Raw = {rng.choice(["rope_type", "type"]): kind}
    for key, values in required.items():
        rope[key] = rng.choice(values) if values else rng.choices([1.0, 1.5, 2], k=head_dim // 2)
    for key in rng.sample(sorted(optional), rng.randint(0, min(3, len(optional)))):
        rope[key] = rng.choice(optional[key])
    if rng.random() < 0.15:
        rope["partial_rotary_factor"] = rng.choice([0.5, 1.0, 0.25])
    raw: Raw = {rng.choice(["rope_parameters", "rope_scaling"]): rope}
    beside = {"rope_theta": _THETAS, "original_max_position_embeddings": _ORIGINALS}
    for name, values in beside.items():
        if rng.random() < 0.3:
            raw[name] = rng.choice(values)
    return raw


def _values() -> dict[str, list[Any]]:
    """Return the values that are tried, by field."""
    result = deepcopy(_OTHERS)
    for other in MODEL_TYPES:
        for field in dataclasses.fields(CONFIG_MAPPING[other]):
            default = None if field.default is dataclasses.MISSING else field.default
            if field.name in _VALUES:
                result[field.name] = _VALUES[field.name]
            elif isinstance(default, bool) or default is None:
                result[field.name] = [False, True]
            elif isinstance(default, int):
                result[field.name] = [default, 1, 2]
            elif isinstance(default, float):
                result[field.name] = [default, 0.5]
    return result


def own_fields(model_type: str) -> list[str]:
    """Return the fields that transformers' class has for an architecture."""
    return sorted(field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type]))


def config(model_type: str, case: int) -> Raw:
    """Return the config.json with a number."""
    rng = Random(f"{model_type} {case}")
    raw = deepcopy(_BASES[model_type]) | {"model_type": model_type}
    values = _values()
    own = [name for name in own_fields(model_type) if name in values]
    # One field after the other, so that a few cases try each of them.
    names = sorted({*own, *_OTHERS} - NO_INFLUENCE)
    changed = [names[case % len(names)], *rng.sample(own, rng.randint(0, 3))]
    if rng.random() < 0.15:
        changed.append(rng.choice(sorted(values)))
    for name in changed:
        raw[name] = deepcopy(rng.choice(values[name]))
    if rng.random() < 0.1:
        raw.pop(rng.choice(_REMOVED), None)
    if rng.random() < 0.5:
        head_dim = raw.get("head_dim") or raw["hidden_size"] // (
            raw.get("num_attention_heads") or 1
        )
        raw |= _rope(rng, head_dim // 2 if model_type == "bamba" else head_dim)
    return raw
