"""The short causal depthwise convolution in front of the state-space scan."""

import torch
import torch.nn.functional as F


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    window: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hybridize.kernels.causal_conv1d`."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    if window is None:
        window = x.new_zeros(batch, width - 1, channels)
    padded = torch.cat([window.to(x.dtype), x], dim=1)
    if seq_idx is None:
        y = F.conv1d(padded.transpose(1, 2), weight[:, None].to(x.dtype), groups=channels)
        y = y.transpose(1, 2)
    else:
        # Taps that would reach into the sequence packed before this one see zeros, as they
        # would at the start of a sequence of its own.
        index = torch.cat([seq_idx[:, :1].expand(-1, width - 1), seq_idx], dim=1)
        y = torch.zeros_like(x)
        for tap in range(width):
            same = (index[:, tap : tap + length] == seq_idx)[..., None]
            y = y + padded[:, tap : tap + length] * same * weight[:, tap].to(x.dtype)
    if bias is not None:
        y = y + bias.to(x.dtype)
    last = padded[:, length:]
    if seq_idx is not None:
        last = last * (index[:, length:] == seq_idx[:, -1:])[..., None]
    return F.silu(y), last


def causal_conv1d_step(
    x: torch.Tensor,
    window: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.causal_conv1d_step`."""
    full = torch.cat([window.to(x.dtype), x[:, None]], dim=1)
    y = (full * weight.t().to(x.dtype)).sum(1)
    if bias is not None:
        y = y + bias.to(x.dtype)
    window.copy_(full[:, 1:])
    return F.silu(y)
