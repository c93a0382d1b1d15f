"""Reading ``generation_config.json``: the default options of text generation."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from hybridize.checkpoints.files import read_json_object
from hybridize.checkpoints.formats.fields import Field, bool_field, number_field, read_fields
from hybridize.console import console
from hybridize.errors import InputError, first_line

FILE = "generation_config.json"

_FLAGS = (
    "do_sample", "use_cache", "use_mtp", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "renormalize_logits",
    "remove_invalid_values", "token_healing", "disable_compile", "low_memory",
)  # fmt: skip
_NUMBERS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "num_beams",
    "num_return_sequences", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p",
    "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "guidance_scale",
    "max_cache_len", "penalty_alpha", "diversity_penalty", "num_beam_groups", "prefill_chunk_size",
)  # fmt: skip
_TOKENS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


def _is_tokens(value: Any) -> bool:
    tokens = value if isinstance(value, list) else [value]
    return all(isinstance(t, int) and not isinstance(t, bool) for t in tokens)


_FIELDS = {
    **dict.fromkeys(_FLAGS, bool_field(False, optional=True)),
    **dict.fromkeys(_NUMBERS, number_field(0, optional=True)),
    **dict.fromkeys(
        _TOKENS, Field(None, _is_tokens, "a token id or a list of token ids", optional=True)
    ),
}


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """Read a checkpoint's default options of text generation; None if it has none.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / FILE
    if not path.exists():
        return None
    raw = read_json_object(path)
    try:
        fields = read_fields(raw, _FIELDS)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(fields, name)
            if isinstance(value, int) and value < 0:  # many published models have a -1
                console.note(f"{path}: {name} is {value}, which is not a token")
        return GenerationConfig.from_dict(raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {first_line(error)}") from error
