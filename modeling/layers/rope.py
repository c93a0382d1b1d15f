"""Rotary position embeddings (RoPE), with every type of scaling in transformers.

`hybridize.modeling.rope_parameters` lists the types, and the parameters that each one needs.
"""

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from hybridize.modeling.config import HybridConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines of RoPE (Su et al. 2021, arXiv 2104.09864) and its variants."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = (config.rope_parameters or {})["rope_type"]
        initialize = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = initialize(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: HybridConfig) -> tuple[torch.Tensor, float]:
        """Return the frequencies of plain RoPE, and 1. Transformers calls it by this name."""
        rope = config.rope_parameters or {}
        assert config.head_dim is not None  # otherwise the model has no rotary embedding
        dim = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        return 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0

    @torch.no_grad()
    @dynamic_rope_update  # recomputes frequencies that depend on the length
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine, each ``(batch, length, rotary_dim)``, in the dtype of ``x``.

        Args:
            x: only its dtype and device matter.
            position_ids: ``(batch, length)``.
        """
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float32)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


_MAX_HEAD_DIM = 1 << 16  # the check of the weights' shapes reports larger ones


def check_rope(config: HybridConfig) -> None:
    """Check that transformers can compute RoPE from a model's ``rope_parameters``.

    Raises:
        ValueError: it cannot.
    """
    if config.head_dim is None or config.head_dim > _MAX_HEAD_DIM:
        return
    try:
        embedding = RotaryEmbedding(config)
        cos, sin = embedding(torch.zeros(()), torch.tensor([[0, config.max_position_embeddings]]))
    except Exception as error:  # each type of RoPE raises its own exceptions for bad values
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"rope_parameters do not describe a RoPE: {reason}") from None
    if not (cos.isfinite().all() and sin.isfinite().all()):
        raise ValueError("rope_parameters give angles that are not finite")
    if cos.shape[-1] > config.head_dim:
        raise ValueError(
            f"head_dim is {config.head_dim}; RoPE rotates pairs of channels, so it must be even"
        )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first ``rotary_dim`` features of every head.

    Args:
        x: ``(batch, heads, length, head_dim)``.
        cos, sin: ``(batch, length, rotary_dim)``.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    dim = cos.shape[-1]
    rotary, unrotated = x[..., :dim], x[..., dim:]
    first, second = rotary.chunk(2, dim=-1)
    rotated = (rotary * cos) + (torch.cat((-second, first), dim=-1) * sin)
    return rotated if unrotated.shape[-1] == 0 else torch.cat((rotated, unrotated), dim=-1)
