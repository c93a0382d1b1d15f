"""The short causal depthwise convolution before the SSD scan."""

import torch
import torch.nn.functional as F

from hybridize.kernels.reference.packed_sequences import number_sequences


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    conv_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.causal_conv1d`, one tap after the other."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    if conv_state is None:
        conv_state = x.new_zeros(batch, width - 1, channels)
    padded = torch.cat([conv_state.to(x.dtype), x], dim=1)
    if seq_idx is None:
        seq_idx = torch.zeros(batch, length, dtype=torch.long, device=x.device)
    # A tap that reaches into another packed sequence sees zeros, as at the start of a sequence.
    sequence = F.pad(number_sequences(seq_idx), (width - 1, 0))
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.zeros_like(x, dtype=wide)
    for tap in range(width):
        same = (sequence[:, tap : tap + length] == sequence[:, width - 1 :])[..., None]
        y = y + padded[:, tap : tap + length] * same * weight[:, tap].to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    last = padded[:, length:] * (sequence[:, length:] == sequence[:, -1:])[..., None]
    return F.silu(y).to(x.dtype), last


def causal_conv1d_step(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.causal_conv1d_step`."""
    full = torch.cat([conv_state.to(x.dtype), x[:, None]], dim=1)
    y = (full * weight.t().to(x.dtype)).sum(1)
    if bias is not None:
        y = y + bias.to(x.dtype)
    conv_state.copy_(full[:, 1:])
    return F.silu(y)
