"""Normalization layers."""

import torch
from torch import nn

from hybridize.kernels import gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square normalization of ``(..., width)``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """The output norm of Mamba-2: gate with SiLU, then normalize each group of channels."""

    def __init__(self, width: int, group_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.group_size = group_size
        self.eps = eps

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Gate and normalize ``(..., width)``."""
        return gated_rms_norm(x, gate, self.weight, self.eps, group_size=self.group_size)
