"""Pure Mamba-2 in transformers' layout."""

from collections.abc import Mapping
from typing import Any, ClassVar

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
    bool_field,
    common_fields,
    dt_limits_field,
    float_field,
    int_field,
    read_fields,
    str_field,
)
from hybridize.checkpoints.formats.known_fields import ROPE
from hybridize.checkpoints.formats.read_model import build_spec
from hybridize.checkpoints.special_floats import encode_special_floats
from hybridize.modeling.layers.kinds import MAMBA
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec

_FIELDS = {
    **common_fields(
        vocab_size=32768, max_position_embeddings=4096, bos=0, eos=2, pad=1, initializer_range=0.1
    ),
    "num_heads": int_field(128),
    "head_dim": int_field(64),
    "state_size": int_field(128),
    "num_hidden_layers": int_field(64),
    "layer_norm_epsilon": float_field(1e-5),
    "expand": int_field(2),
    "conv_kernel": int_field(4),
    "n_groups": int_field(8),
    "use_bias": bool_field(False),
    "use_conv_bias": bool_field(True),
    "hidden_act": str_field("silu"),
    "residual_in_fp32": bool_field(True),
    "time_step_limit": dt_limits_field(),
}


class Mamba2Format(Format):
    """``model_type: mamba2``."""

    name = "mamba2"
    fields = _FIELDS
    no_influence = (
        "chunk_size", "time_step_rank", "time_step_min", "time_step_max", "time_step_floor",
        "time_step_init_scheme", "time_step_scale", "rescale_prenorm_residual", "intermediate_size",
        "norm_before_gate", "A_initializer_range", "emb_initializer_range", "use_mamba_kernels",
        *ROPE,  # without attention
    )  # fmt: skip
    required: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rms_norm": (True,)}
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
    def fit(self, spec: ModelSpec) -> Fit:
        require(set(spec.layout) == {MAMBA}, "the format has Mamba-2 blocks only")
        mamba = uniform(spec, MambaSizes)
        assert mamba is not None
        require_no_multipliers(spec)
        require(
            mamba.d_inner % spec.hidden_size == 0,
            "the Mamba-2 width must be a multiple of the hidden size",
        )
        return Fit(spec)

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        mamba = uniform(spec, MambaSizes)
        assert mamba is not None
        raw: Raw = {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": self.name,
            **written_fields(spec),
            "num_hidden_layers": len(spec.layout),
            "num_heads": mamba.num_heads,
            "head_dim": mamba.head_dim,
            "n_groups": mamba.n_groups,
            "state_size": mamba.d_state,
            "conv_kernel": mamba.conv_kernel,
            "use_conv_bias": mamba.conv_bias,
            "use_bias": mamba.proj_bias,
            "expand": mamba.d_inner // spec.hidden_size,
            "hidden_act": "silu",
            "residual_in_fp32": spec.residual_in_fp32,
            "layer_norm_epsilon": spec.norm_eps,
        }
        if mamba.dt_limit != (0.0, float("inf")):
            raw["time_step_limit"] = encode_special_floats(mamba.dt_limit)
        return raw
