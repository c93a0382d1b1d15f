"""What is known about fields of a config.json that no format reads.

`hybridize.checkpoints.formats.unknown_fields` checks a file with these tables. Fields that belong
to one architecture are in its format's file: see `Format.also_read`, `Format.no_influence` and
`Format.required`.
"""

from collections.abc import Mapping
from typing import Any

ROPE = (
    "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor",
    "original_max_position_embeddings",
)  # fmt: skip
"""The fields that `hybridize.checkpoints.formats.rope` reads."""

READ_BY_ALL = frozenset(
    ("model_type", "dtype", "torch_dtype", "quantization_config", "transformers_weights")
)
"""Fields that are read whatever the architecture is."""

_BOOKKEEPING = (
    "architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash",
    "auto_map", "tokenizer_class", "model_name", "base_model_name_or_path", "license", "revision",
    "torchscript", "use_bfloat16", "gradient_checkpointing", "initializer_range",
    "initializer_factor", "init_std", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation", "_experts_implementation_internal", "_flash_attn_2_enabled",
    "use_flash_attention", "use_flash_attn", "use_flash_attention_2", "attention_dropout",
    "hidden_dropout", "resid_dropout", "embd_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "classifier_dropout", "distributed_config",
    "max_sequence_length", "seq_length", "model_max_length", "max_seq_len",
)  # fmt: skip
_OUTPUTS = (
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
    "use_return_dict", "use_cache", "id2label", "label2id", "num_labels", "problem_type",
    "_num_labels", "finetuning_task", "task_specific_params", "chunk_size_feed_forward",
    "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size", "tie_last_hidden_states",
    "num_logits_to_keep", "logits_to_keep",
)  # fmt: skip
_TOKENS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
    "mask_token_id", "decoder_start_token_id", "prefix",
)  # fmt: skip
_GENERATION = (
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
    "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "target_lookbehind", "temperature", "top_k", "top_p", "typical_p",
)  # fmt: skip
_OTHER_PROGRAMS = (
    "unsloth_version", "unsloth_fixed", "unsloth_training", "transformers.js_config",
    "is_llama_config", "use_mrope", "pretraining_tp", "ggml_type",
)  # fmt: skip

NO_INFLUENCE = frozenset((*_BOOKKEEPING, *_OUTPUTS, *_TOKENS, *_GENERATION, *_OTHER_PROGRAMS))
"""Fields that change no logit, whatever the architecture and the value are."""

REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True, None),
    "per_layer_config": (None, {}),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "number_of_conv_states": (1,),
    "configuration_files": (None, []),
    "text_config": (None,),
    "text_encoder": (None,),
    "decoder": (None,),
    "generator": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}),
    "fusion_config": (None, {}),
    "normalization_function": ("rmsnorm", None),
    "compression_config": (None, {}),
}
"""Fields with a meaning in any architecture, with the values that hybridize supports.

Transformers reads most of them from a configuration of any class.
"""

SUSPICIOUS = (
    "rope", "rotary", "scal", "multiplier", "bias", "window", "norm", "softcap", "logit", "quant",
    "alibi", "clip", "clamp", "chunk", "expert", "moe", "residual", "activation", "_act",
    "attention_sink", "temperature_tuning", "layer_types", "causal", "bidirectional", "per_layer",
)  # fmt: skip
"""Parts of the names of fields that change the logits of some model in some program."""
