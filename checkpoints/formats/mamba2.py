"""Pure Mamba-2, as transformers lays it out."""

from transformers import Mamba2Config

from hybridize.checkpoints.formats.base import (
    Fit,
    Format,
    Names,
    Raw,
    common_fields,
    require,
    require_no_multipliers,
    uniform,
    written_fields,
)
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.layout import MAMBA


class Mamba2Format(Format):
    """``model_type: mamba2``."""

    name = "mamba2"
    names = Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        norms={MAMBA: "backbone.layers.{}.norm"},
        mixers={MAMBA: "backbone.layers.{}.mixer"},
    )

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        source = Mamba2Config.from_dict(raw)
        if source.hidden_act != "silu":
            raise ValueError(f"hidden_act is {source.hidden_act!r}; it must be silu")
        low, high = source.time_step_limit
        sizes = MambaSizes(
            num_heads=source.num_heads,
            head_dim=source.head_dim,
            n_groups=source.n_groups,
            d_state=source.state_size,
            conv_kernel=source.conv_kernel,
            conv_bias=source.use_conv_bias,
            proj_bias=source.use_bias,
            dt_min=float(low),
            dt_max=None if high == float("inf") else float(high),
        )
        return HybridConfig.from_blocks(
            [sizes] * source.num_hidden_layers,
            **common_fields(source),
            norm_eps=source.layer_norm_epsilon,
            residual_in_fp32=source.residual_in_fp32,
        )

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        require(set(config.layout) == {MAMBA}, "it has Mamba-2 blocks only")
        mamba = uniform(config, MambaSizes)
        assert mamba is not None
        require_no_multipliers(config)
        require(
            mamba.d_inner % config.hidden_size == 0,
            "its Mamba-2 width is a whole multiple of the hidden size",
        )
        return Fit(config)

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
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
        if mamba.dt_max is not None:
            raw["time_step_limit"] = list(mamba.dt_limit)
        elif mamba.dt_min:
            # JSON has no infinity; this is how transformers spells it.
            raw["time_step_limit"] = [mamba.dt_min, {"__float__": "Infinity"}]
        return raw
