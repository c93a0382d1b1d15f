"""The keys of a GGUF file that describe the model."""

from typing import TYPE_CHECKING

import torch

from hybridize.checkpoints.formats.base import uniform, uniform_except_window
from hybridize.exporters.gguf.supported_models import layer_count, mamba_layers
from hybridize.exporters.gguf.tensors import attention_factor, rotary_dim
from hybridize.file_names import utf8
from hybridize.modeling.layers.sizes import MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "granitehybrid"


def write_metadata(writer: "GGUFWriter", spec: ModelSpec, name: str, dtype: torch.dtype) -> None:
    """Write the keys that llama.cpp's Granite hybrid reads.

    Args:
        writer: the writer of the file.
        spec: the model's sizes; see `unsupported_features` for those that are possible.
        name: the model's name.
        dtype: the dtype of its matrices.
    """
    from gguf import LlamaFileType

    attention, mamba = uniform_except_window(spec), uniform(spec, MambaSizes)
    mlp = uniform(spec, MLPSizes)
    assert mamba is not None
    assert mlp is not None
    file_types = {
        torch.float32: LlamaFileType.ALL_F32,
        torch.float16: LlamaFileType.MOSTLY_F16,
        torch.bfloat16: LlamaFileType.MOSTLY_BF16,
    }
    writer.add_type("model")
    writer.add_name(utf8(name).decode())
    writer.add_file_type(file_types[dtype])
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(layer_count(spec))
    writer.add_feed_forward_length(mlp.intermediate_size)
    writer.add_layer_norm_rms_eps(spec.norm_eps)

    writer.add_head_count(attention.num_heads)
    # A layer without KV heads is a Mamba-2 layer for llama.cpp.
    writer.add_head_count_kv([0 if is_mamba else attention.num_kv_heads
                              for is_mamba in mamba_layers(spec)])  # fmt: skip
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    writer.add_attention_scale(scale)

    writer.add_rope_scaling_finetuned(attention.rope)  # the loader applies RoPE if this is true
    if attention.rope:
        writer.add_rope_dimension_count(rotary_dim(spec))
        writer.add_rope_freq_base((spec.rope_parameters or {})["rope_theta"])
        if attention_factor(spec) != 1.0:
            writer.add_rope_scaling_attn_factors(attention_factor(spec))

    writer.add_ssm_conv_kernel(mamba.conv_kernel)
    writer.add_ssm_inner_size(mamba.d_inner)
    writer.add_ssm_state_size(mamba.d_state)
    writer.add_ssm_time_step_rank(mamba.num_heads)
    writer.add_ssm_group_count(mamba.n_groups)

    writer.add_embedding_scale(spec.embedding_multiplier)
    writer.add_residual_scale(spec.residual_multiplier)
    writer.add_logit_scale(spec.logits_scaling)
