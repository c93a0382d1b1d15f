"""Nemotron-H: Mamba-2, attention without RoPE and squared-ReLU MLPs, in any order."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from hybridize.checkpoints.formats.base import (
    Fit,
    Format,
    Names,
    letters_to,
    require,
    require_default_scale,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.checkpoints.formats.fields import (
    Raw,
    bool_field,
    common_fields,
    float_field,
    int_field,
    read_fields,
    str_field,
    str_list_field,
)
from hybridize.checkpoints.formats.read_model import build_spec, layer_kinds
from hybridize.modeling.layers.kinds import ATTENTION, LAYER_KINDS, MAMBA, MLP
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec

_WORDS = {ATTENTION: "full_attention", MAMBA: "linear_attention", MLP: "mlp"}
_EXPERTS = "moe"
_KINDS_BY_LETTER = _WORDS | {"E": _EXPERTS}

_FIELDS = {
    **common_fields(vocab_size=131072, max_position_embeddings=4096, bos=1, eos=2, pad=0),
    "layers_block_type": str_list_field(),
    "num_attention_heads": int_field(32),
    "num_key_value_heads": int_field(8),
    "head_dim": int_field(128),
    "intermediate_size": int_field(21504),
    "mlp_hidden_act": str_field("relu2"),
    "mlp_bias": bool_field(False),
    "ssm_state_size": int_field(128),
    "mamba_num_heads": int_field(128),
    "mamba_head_dim": int_field(64),
    "mamba_hidden_act": str_field("silu"),
    "n_groups": int_field(8),
    "conv_kernel": int_field(4),
    "time_step_min": float_field(0.001),
    "use_conv_bias": bool_field(True),
    "use_bias": bool_field(False),
    "layer_norm_epsilon": float_field(1e-5),
}

_OLD_NAMES = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_min": "mamba_dt_min",
    "use_conv_bias": "mamba_conv_bias",
}
"""The names of these fields in NVIDIA's own code. They take precedence if they are present."""


class NemotronH(Format):
    """``model_type: nemotron_h``."""

    name = "nemotron_h"
    fields = _FIELDS
    also_read = ("layer_types", "hybrid_override_pattern", *_OLD_NAMES.values())
    no_influence = (
        # Transformers derives these from others.
        "num_hidden_layers", "expand", "mamba_expand", "attention_head_dim",
        # For Δt, its code reads only `time_step_min`; for norms, only `layer_norm_epsilon`.
        "time_step_max", "time_step_limit", "time_step_floor", "mamba_dt_max", "mamba_dt_limit",
        "mamba_dt_init_floor", "rms_norm_eps", "mamba_proj_bias", "residual_in_fp32",
        "chunk_size", "mamba_chunk_size", "use_mamba_kernels", "mamba_ssm_cache_dtype",
        "rescale_prenorm_residual",
        # The attention has no RoPE and no window.
        "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "sliding_window",
        # Experts, which are refused, and the prediction of several tokens, which is not read.
        "n_routed_experts", "num_local_experts", "n_shared_experts", "moe_intermediate_size",
        "moe_shared_expert_intermediate_size", "moe_latent_size", "moe_shared_expert_overlap",
        "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob",
        "num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
    )  # fmt: skip
    required: ClassVar[Mapping[str, tuple[Any, ...]]] = {"attention_bias": (False, None)}
    names = Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        norms=dict.fromkeys(LAYER_KINDS, "backbone.layers.{}.norm"),
        mixers=dict.fromkeys(LAYER_KINDS, "backbone.layers.{}.mixer"),
    )

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        old = {name: raw[other] for name, other in _OLD_NAMES.items() if other in raw}
        source = read_fields(raw | old, _FIELDS)
        kinds = _read_kinds(raw, source)
        if _EXPERTS in kinds:
            raise ValueError("mixture-of-experts layers are not supported, only dense models")
        if source.mamba_hidden_act != "silu":
            raise ValueError(f"mamba_hidden_act is {source.mamba_hidden_act!r}; it must be silu")
        sizes: dict[str, BlockSizes] = {
            _WORDS[ATTENTION]: AttentionSizes(
                num_heads=source.num_attention_heads,
                num_kv_heads=source.num_key_value_heads,
                head_dim=source.head_dim,
                rope=False,
            ),
            _WORDS[MAMBA]: MambaSizes(
                num_heads=source.mamba_num_heads,
                head_dim=source.mamba_head_dim,
                n_groups=source.n_groups,
                d_state=source.ssm_state_size,
                conv_kernel=source.conv_kernel,
                conv_bias=source.use_conv_bias,
                proj_bias=source.use_bias,
                # Transformers' code clamps Δt to time_step_min and not to time_step_limit.
                dt_min=source.time_step_min,
            ),
            _WORDS[MLP]: MLPSizes(
                intermediate_size=source.intermediate_size,
                activation=source.mlp_hidden_act,
                gated=False,
                bias=source.mlp_bias,
            ),
        }
        source.tie_word_embeddings = False
        blocks = [sizes[kind] for kind in kinds]
        return build_spec(raw, source, blocks, norm_eps=source.layer_norm_epsilon)

    @override
    def fit(self, spec: ModelSpec) -> Fit:
        attention, mamba = uniform(spec, AttentionSizes), uniform(spec, MambaSizes)
        mlp = uniform(spec, MLPSizes)
        require(not spec.tie_word_embeddings, "the format has no tied embeddings")
        require(
            not spec.residual_in_fp32, "the format does not keep the residual stream in float32"
        )
        require_no_multipliers(spec)
        # Transformers' model asks its cache for a length, and only attention layers have one.
        require(attention is not None, "the model must have at least one attention block")
        if attention is not None:
            require(not attention.rope, "the format's attention has no RoPE")
            plain = not (attention.qkv_bias or attention.out_bias or attention.qk_norm)
            require(plain, "the format's attention has no biases and no query/key norm")
            require_default_scale(attention)
            require(attention.sliding_window is None, "the format has no sliding window")
        require(mamba is None or mamba.dt_max is None, "the format has no upper limit of Δt")
        require(mlp is None or not mlp.gated, "the format has no gated MLP")
        return Fit(spec)

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        attention, mamba = uniform(spec, AttentionSizes), uniform(spec, MambaSizes)
        mlp = uniform(spec, MLPSizes)
        raw: Raw = {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": self.name,
            **written_fields(spec),
            # Written twice, because vLLM and NVIDIA's own code read only the pattern.
            "hybrid_override_pattern": spec.layout,
            "layers_block_type": letters_to(_WORDS, spec.layout),
            "num_hidden_layers": len(spec.layout),
            "layer_norm_epsilon": spec.norm_eps,
        }
        if attention is not None:
            raw |= {
                "num_attention_heads": attention.num_heads,
                "num_key_value_heads": attention.num_kv_heads,
                "head_dim": attention.head_dim,
                "attention_bias": False,
            }
        if mamba is not None:
            raw |= {
                "mamba_num_heads": mamba.num_heads,
                "mamba_head_dim": mamba.head_dim,
                "n_groups": mamba.n_groups,
                "ssm_state_size": mamba.d_state,
                "conv_kernel": mamba.conv_kernel,
                "use_conv_bias": mamba.conv_bias,
                "use_bias": mamba.proj_bias,
                "mamba_proj_bias": mamba.proj_bias,
                "mamba_hidden_act": "silu",
                "expand": max(1, mamba.d_inner // spec.hidden_size),
                # Transformers takes its logarithm, so it must not be zero.
                "time_step_min": mamba.dt_min or 1e-30,
            }
        if mlp is not None:
            raw |= {
                "intermediate_size": mlp.intermediate_size,
                "mlp_hidden_act": mlp.activation,
                "mlp_bias": mlp.bias,
            }
        return raw


def _read_kinds(raw: Raw, source: SimpleNamespace) -> list[str]:
    """Return the kind of every block, from the field of config.json that has them.

    Newer files have ``layer_types`` or ``layers_block_type``, older ones a pattern of letters.
    """
    kinds: Any = raw.get("layer_types", source.layers_block_type)
    if kinds is None and "layer_types" not in raw:
        if "hybrid_override_pattern" not in raw:
            raise ValueError("layers_block_type is missing; it must list the kind of every layer")
        pattern = raw["hybrid_override_pattern"]
        unknown = sorted(set(pattern) - set(_KINDS_BY_LETTER)) if isinstance(pattern, str) else [""]
        if unknown:
            raise ValueError(f"hybrid_override_pattern is {pattern!r}; its letters must be M * - E")
        kinds = [_KINDS_BY_LETTER[letter] for letter in pattern]
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"layers_block_type is {kinds!r}; it must be a list of strings")
    return layer_kinds(kinds, (*_WORDS.values(), _EXPERTS), len(kinds))
