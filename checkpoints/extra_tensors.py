"""Tensors that lie beside the weights of a checkpoint and are not part of its model.

Transformers ignores every such tensor with a warning. Here, only those that no model needs are left
out, with a note. All others are refused: leaving out the scale of a quantized weight, or a LoRA
matrix, would give wrong numbers.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hybridize.console import console

_LEFT_OUT = {
    # Computed from config.json when a model is made. Older versions stored them.
    "RoPE tables": (
        "*rotary_emb.inv_freq", "*rotary_emb.original_inv_freq", "*rotary_emb.cos_cached",
        "*rotary_emb.sin_cached", "*rotary_pos_emb.inv_freq",
    ),
    "position ids": ("*.position_ids", "position_ids"),
    "attention masks": ("*.masked_bias", "*.causal_mask"),
    # Transformers stores keys and values as they are.
    "scales of the KV cache": (
        "*attn.[qkv]_scale", "*attn.[qkv]_zero_point", "*attn.kv_scale", "*attn.prob_scale",
        "*attn.attn.[qkv]_scale", "*attn.[kv]_cache_scale", "*attn.kv_cache_scale",
        "*attn.[kv]v_cache.*scale", "*attn.[kqv]_proj.output_scale",
        "*attn.[kv]_proj.[kv]_scale", "*.kv_cache.[kv]_scale", "*.kv_cache_scaling_factor",
    ),
    "training states": ("*._extra_state",),
    "heads that score texts": ("v_head.*", "value_head.*"),
    "layers that predict further tokens": ("mtp.*", "model.mtp.*"),
}  # fmt: skip
"""Names of tensors that do not influence the logits, as glob patterns, by what they are."""

_MASKS = ("*attn.bias", "*attention.bias")
"""Names that are causal masks if the tensor has four dimensions (batch, head, query, key)."""

_REFUSED = {
    "belongs to an adapter (LoRA): merge it with peft's merge_and_unload and save that": (
        r"\.lora_|^base_model\.model\.|\.modules_to_save\.|\.base_layer\.|\.magnitude_vector"
    ),
    "belongs to a quantized weight, and config.json does not say how it is quantized: "
    "use the unquantized checkpoint": (
        r"\.(qweight|qzeros|scales|g_idx|zeros|biases|SCB|weight_format|absmax|quant_map"
        r"|nested_absmax|weight_packed|weight_shape|input_amax|weight_amax)$"
        r"|weight_scale|weight_zero_point|_scale(_inv|_2)?$|_scales$|_zero_point$|\.weight\.absmax"
        r"|\.weight\.quant|\.weight\.nested|global_scale|input_scale|output_scale"
    ),
}
"""Regular expressions of tensors that change the weights, by what is wrong and what to do."""


def left_out(name: str, shape: Sequence[int]) -> str:
    """Return what a tensor is that no model needs; empty if the tensor may be needed.

    Args:
        name: a tensor that is not part of the model.
        shape: its shape.
    """
    for kind, patterns in _LEFT_OUT.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return kind
    mask = len(shape) == 4 and shape[-1] == shape[-2]
    if mask and any(fnmatch.fnmatchcase(name, pattern) for pattern in _MASKS):
        return "attention masks"
    return ""


def problem(name: str, model_type: str) -> str:
    """Return why a tensor that is not part of the model is refused, with its name."""
    for text, pattern in _REFUSED.items():
        if re.search(pattern, name):
            return f"tensor {name!r} {text}"
    return f"tensor {name!r} is not part of a {model_type} model with this config.json"


def note_left_out(directory: Path, names: Iterable[tuple[str, str]]) -> None:
    """Print a note about the tensors that are left out.

    Args:
        directory: the checkpoint.
        names: each tensor's name, and what it is.
    """
    by_kind: dict[str, list[str]] = {}
    for name, kind in names:
        by_kind.setdefault(kind, []).append(name)
    for kind, found in by_kind.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        console.note(
            f"{directory}: left out, without influence on the result: {kind} ({found[0]}{more})"
        )
