"""Nemotron-H: any order of Mamba-2, attention without positions, and squared-ReLU MLPs."""

from transformers import NemotronHConfig

from hybridize.checkpoints.formats.base import (
    Fit,
    Format,
    Names,
    Raw,
    common_fields,
    letters_to,
    require,
    require_default_scale,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.layout import ATTENTION, KINDS, MAMBA, MLP

_WORDS = {ATTENTION: "full_attention", MAMBA: "linear_attention", MLP: "mlp"}


class NemotronH(Format):
    """``model_type: nemotron_h``."""

    name = "nemotron_h"
    names = Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        norms=dict.fromkeys(KINDS, "backbone.layers.{}.norm"),
        mixers=dict.fromkeys(KINDS, "backbone.layers.{}.mixer"),
    )

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = NemotronHConfig.from_dict(raw)
        kinds = source.layers_block_type or []
        if "moe" in kinds:
            raise ValueError("it has mixture-of-experts layers; only dense models are supported")
        sizes: dict[str, BlockSizes] = {
            "full_attention": AttentionSizes(
                num_heads=source.num_attention_heads,
                num_kv_heads=source.num_key_value_heads,
                head_dim=source.head_dim,
                rope=False,
            ),
            "linear_attention": MambaSizes(
                num_heads=source.mamba_num_heads,
                head_dim=source.mamba_head_dim,
                n_groups=source.n_groups,
                d_state=source.ssm_state_size,
                conv_kernel=source.conv_kernel,
                conv_bias=source.use_conv_bias,
                proj_bias=source.use_bias,
                # The stock code clamps the step to this, not to time_step_limit.
                dt_min=source.time_step_min,
            ),
            "mlp": MLPSizes(
                intermediate_size=source.intermediate_size,
                activation=source.mlp_hidden_act,
                gated=False,
                bias=source.mlp_bias,
            ),
        }
        if source.mamba_hidden_act != "silu":
            raise ValueError(f"mamba_hidden_act is {source.mamba_hidden_act!r}; it must be silu")
        return HybridConfig.from_blocks(
            [sizes[kind] for kind in kinds],
            **common_fields(source) | {"tie_word_embeddings": False},
            norm_eps=source.layer_norm_epsilon,
        )

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        attention, mamba = uniform(config, AttentionSizes), uniform(config, MambaSizes)
        mlp = uniform(config, MLPSizes)
        require(not config.tie_word_embeddings, "its embeddings and head are not tied")
        require(not config.residual_in_fp32, "its residual stream is not kept in float32")
        require_no_multipliers(config)
        # Without any, transformers' model asks its cache for a length that it does not have.
        require(attention is not None, "it has attention somewhere")
        if attention is not None:
            require(not attention.rope, "its attention has no RoPE")
            plain = not (attention.qkv_bias or attention.out_bias or attention.qk_norm)
            require(plain, "its attention has no biases and no query/key norm")
            require_default_scale(attention)
            require(attention.sliding_window is None, "it has no sliding window")
        require(mamba is None or mamba.dt_max is None, "its steps have no upper limit")
        require(mlp is None or not mlp.gated, "its MLP is not gated")
        return Fit(config)

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        attention, mamba = uniform(config, AttentionSizes), uniform(config, MambaSizes)
        mlp = uniform(config, MLPSizes)
        raw: Raw = {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": self.name,
            **written_fields(config),
            # Both spellings: vLLM and NVIDIA's own code read the pattern.
            "hybrid_override_pattern": config.layout,
            "layers_block_type": letters_to(_WORDS, config.layout),
            "num_hidden_layers": len(config.layout),
            "layer_norm_epsilon": config.norm_eps,
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
                "expand": max(1, mamba.d_inner // config.hidden_size),
                # transformers takes its logarithm, so "no lower limit" must not be zero.
                "time_step_min": mamba.dt_min or 1e-30,
            }
        if mlp is not None:
            raw |= {
                "intermediate_size": mlp.intermediate_size,
                "mlp_hidden_act": mlp.activation,
                "mlp_bias": mlp.bias,
            }
        return raw
