"""Random checkpoints of every architecture, small enough for each test to make its own.

The random weights give peaked attention, norms that differ from one, and no tensor of zeros. So
an exchanged or a missing tensor changes the logits.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 64
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567"
_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LAYERS: dict[str, Any] = {"num_hidden_layers": 4, "intermediate_size": 64}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
}
_CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _SHARED | _LAYERS),
    "mistral": (MistralConfig, _SHARED | _LAYERS | {"sliding_window": None}),
    "qwen2": (Qwen2Config, _SHARED | _LAYERS),
    "qwen3": (Qwen3Config, _SHARED | _LAYERS | {"head_dim": 16}),
    "granitemoehybrid": (
        GraniteMoeHybridConfig,
        _SHARED
        | _MAMBA
        | {
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "shared_intermediate_size": 48,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 3.0,
        },
    ),
    "bamba": (
        BambaConfig,
        _SHARED
        | _MAMBA
        | {
            "num_hidden_layers": 3,
            "intermediate_size": 48,
            "attn_layer_indices": [1],
            "mlp_bias": True,
        },
    ),
    "nemotron_h": (
        NemotronHConfig,
        _SHARED
        | {
            "layers_block_type": [
                "linear_attention",
                "mlp",
                "full_attention",
                "linear_attention",
                "mlp",
            ],
            "head_dim": 8,
            "intermediate_size": 48,
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            # transformers clamps dt to this in the prefill only, not in decoding.
            "time_step_min": 1e-9,
        },
    ),
    "mamba2": (
        Mamba2Config,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
        },
    ),
}
ARCHITECTURES = tuple(_CONFIGS)
TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")


def stock_config(architecture: str, **changes: Any) -> PreTrainedConfig:
    """Return transformers' configuration of a tiny model."""
    cls, fields = _CONFIGS[architecture]
    return cls(**(fields | changes))


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int = 0) -> None:
    """Give every parameter random values that influence the logits."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: torch.Tensor) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator)

    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.copy_(noise(parameter).clamp(-2, 1))
        elif name.endswith("dt_bias"):
            parameter.copy_(noise(parameter) - 2)
        elif parameter.ndim == 1 and not name.endswith("bias"):
            parameter.copy_(1 + 0.2 * noise(parameter))
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * noise(parameter))
        else:
            parameter.copy_(0.2 * noise(parameter))


def write_stock(
    directory: Path, architecture: str, *, seed: int = 0, shard: str = "50GB", **changes: Any
) -> PreTrainedModel:
    """Write a random checkpoint with transformers' own code, and return its model."""
    model = AutoModelForCausalLM.from_config(stock_config(architecture, **changes)).eval()
    randomize(model, seed)
    model.save_pretrained(directory, max_shard_size=shard)
    return model


def tokens(batch: int = 2, length: int = 37, seed: int = 1) -> torch.Tensor:
    """Return random token ids without special tokens, ``(batch, length)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer with one token per letter.

    The vocabulary is ``<unk>``, ``<s>``, ``</s>``, the mark of a word's start, and 60 letters.
    """
    tokens = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    assert len(tokens) == VOCAB
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)
