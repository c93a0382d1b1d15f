"""Root-mean-square normalization, plain and gated."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Implement `hybridize.kernels.rms_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = wide.pow(2).mean(-1, keepdim=True)
    # Round to the input's dtype before multiplying by the weight, as transformers' models do.
    return weight * (wide * torch.rsqrt(variance + eps)).to(x.dtype)


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    """Implement `hybridize.kernels.gated_rms_norm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y, silu = x.to(wide), F.silu(gate.to(wide))
    if not norm_before_gate:
        y = y * silu
    groups = y.unflatten(-1, (-1, group_size))
    variance = groups.pow(2).mean(-1, keepdim=True)
    y = weight * (groups * torch.rsqrt(variance + eps)).flatten(-2).to(x.dtype)
    return y * silu.to(y.dtype) if norm_before_gate else y
