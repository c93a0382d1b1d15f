"""The MLP without a gate."""

import torch
import torch.nn.functional as F

from hybridize.kernels.reference.activation import squared_relu


def squared_relu_mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Implement `hybridize.kernels.squared_relu_mlp`."""
    return F.linear(squared_relu(F.linear(x, up, up_bias)), down, down_bias)
