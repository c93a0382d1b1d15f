"""hybridize's own architecture, which stores every model.

The directory contains a modeling file. A machine without hybridize opens it with
``trust_remote_code=True``; with hybridize installed, ``import hybridize`` is enough.
"""

from typing_extensions import override

from hybridize.checkpoints.formats.base import Fit, Format, Names, written_fields
from hybridize.checkpoints.formats.fields import (
    Raw,
    bool_field,
    common_fields,
    number_field,
    object_field,
    read_fields,
    str_field,
)
from hybridize.checkpoints.formats.known_fields import ROPE
from hybridize.checkpoints.formats.modeling_file import MODELING_FILE, modeling_source
from hybridize.checkpoints.formats.read_model import build_spec
from hybridize.checkpoints.formats.rope import read_rope
from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.model_spec import ModelSpec, pack_blocks, unpack_blocks

_FIELDS = {
    **common_fields(vocab_size=32000, max_position_embeddings=4096, bos=None, eos=None),
    "layout": str_field("M-"),
    "overrides": object_field(),
    "initializer_range": number_field(0.02),
    "norm_eps": number_field(1e-5),
    "embedding_multiplier": number_field(1.0),
    "residual_multiplier": number_field(1.0),
    "logits_scaling": number_field(1.0),
    "residual_in_fp32": bool_field(False),
}

_DERIVED = (
    "layer_types", "sliding_window", "num_attention_heads", "num_key_value_heads", "head_dim",
    "blocks", "spec",
)  # fmt: skip
"""Attributes that `HybridConfig` derives from the blocks."""


class HybridizeFormat(Format):
    """``model_type: hybridize``."""

    name = "hybridize"
    fields = _FIELDS
    also_read = (*ROPE, *(kind.name for kind in LAYER_KINDS.values()))
    no_influence = ("num_hidden_layers",)  # the layout determines it
    own = True
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=dict.fromkeys(LAYER_KINDS, "model.blocks.{}.norm"),
        mixers=dict.fromkeys(LAYER_KINDS, "model.blocks.{}.mixer"),
    )

    @override
    def to_spec(self, raw: Raw) -> ModelSpec:
        for name in _DERIVED:
            if name in raw:
                raise ValueError(f"{name} is derived from the sizes of the blocks; remove it")
        kinds = {kind.name: object_field() for kind in LAYER_KINDS.values()}
        source = read_fields(raw, _FIELDS | kinds)
        return build_spec(raw, source, unpack_blocks(vars(source)), rope_parameters=read_rope(raw))

    @override
    def _disk_name(self, parameter: str, layout: str) -> str:
        del layout
        return parameter

    @override
    def fit(self, spec: ModelSpec) -> Fit:
        return Fit(spec, notes=("opens with `import hybridize`, or with trust_remote_code=True",))

    @override
    def to_raw(self, spec: ModelSpec) -> Raw:
        module = MODELING_FILE.removesuffix(".py")
        return {
            "architectures": ["HybridForCausalLM"],
            "auto_map": {
                "AutoConfig": f"{module}.HybridConfig",
                "AutoModelForCausalLM": f"{module}.HybridForCausalLM",
            },
            "model_type": self.name,
            **written_fields(spec),
            **pack_blocks(spec.blocks),
            "norm_eps": spec.norm_eps,
            "rope_parameters": spec.rope,
            "embedding_multiplier": spec.embedding_multiplier,
            "residual_multiplier": spec.residual_multiplier,
            "logits_scaling": spec.logits_scaling,
            "residual_in_fp32": spec.residual_in_fp32,
        }

    @override
    def extra_files(self, spec: ModelSpec) -> dict[str, str]:
        del spec
        return {MODELING_FILE: modeling_source()}
