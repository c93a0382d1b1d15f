"""Pure Mamba-2 in transformers' layout."""

from typing_extensions import override

from hybridize.checkpoints.formats.base import (
    Fit,
    Format,
    Names,
    require,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.checkpoints.formats.fields import (
    Raw,
    common_fields,
    flag,
    limits,
    read_fields,
    real,
    text,
    whole,
)
from hybridize.checkpoints.formats.read_model import build_spec
from hybridize.checkpoints.special_floats import encode_special_floats
from hybridize.modeling.layers.kinds import MAMBA
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec

_FIELDS = {
    **common_fields(
        vocab_size=32768, max_position_embeddings=4096, bos=0, eos=2, pad=1, initializer_range=0.1
    ),
    "num_heads": whole(128),
    "head_dim": whole(64),
    "state_size": whole(128),
    "num_hidden_layers": whole(64),
    "layer_norm_epsilon": real(1e-5),
    "expand": whole(2),
    "conv_kernel": whole(4),
    "n_groups": whole(8),
    "use_bias": flag(False),
    "use_conv_bias": flag(True),
    "hidden_act": text("silu"),
    "residual_in_fp32": flag(True),
    "time_step_limit": limits(),
}


class Mamba2Format(Format):
    """``model_type: mamba2``."""

    name = "mamba2"
    fields = _FIELDS
    names = Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        norms={MAMBA: "backbone.layers.{}.norm"},
        mixers={MAMBA: "backbone.layers.{}.mixer"},
    )

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        source = read_fields(raw, _FIELDS)
        if source.hidden_act != "silu":
            raise ValueError(f"hidden_act is {source.hidden_act!r}; it must be silu")
        if source.hidden_size * source.expand != source.num_heads * source.head_dim:
            raise ValueError(
                f"hidden_size × expand is {source.hidden_size * source.expand} and num_heads × "
                f"head_dim is {source.num_heads * source.head_dim}; they must be equal"
            )
        low, high = source.time_step_limit
        sizes = MambaSizes(
            num_heads=source.num_heads,
            head_dim=source.head_dim,
            n_groups=source.n_groups,
            d_state=source.state_size,
            conv_kernel=source.conv_kernel,
            conv_bias=source.use_conv_bias,
            proj_bias=source.use_bias,
            dt_min=low,
            dt_max=None if high == float("inf") else high,
        )
        return build_spec(
            raw, source, [sizes] * source.num_hidden_layers, norm_eps=source.layer_norm_epsilon
        )

    @override
    def fit(self, config: ModelSpec) -> Fit:
        require(set(config.layout) == {MAMBA}, "the format has Mamba-2 blocks only")
        mamba = uniform(config, MambaSizes)
        assert mamba is not None
        require_no_multipliers(config)
        require(
            mamba.d_inner % config.hidden_size == 0,
            "the Mamba-2 width must be a multiple of the hidden size",
        )
        return Fit(config)

    @override
    def to_raw(self, config: ModelSpec) -> Raw:
        mamba = uniform(config, MambaSizes)
        assert mamba is not None
        raw: Raw = {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": self.name,
            **written_fields(config),
            "num_hidden_layers": len(config.layout),
            "num_heads": mamba.num_heads,
            "head_dim": mamba.head_dim,
            "n_groups": mamba.n_groups,
            "state_size": mamba.d_state,
            "conv_kernel": mamba.conv_kernel,
            "use_conv_bias": mamba.conv_bias,
            "use_bias": mamba.proj_bias,
            "expand": mamba.d_inner // config.hidden_size,
            "hidden_act": "silu",
            "residual_in_fp32": config.residual_in_fp32,
            "layer_norm_epsilon": config.norm_eps,
        }
        if mamba.dt_limit != (0.0, float("inf")):
            raw["time_step_limit"] = encode_special_floats(mamba.dt_limit)
        return raw
