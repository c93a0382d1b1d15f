"""Activations of MLPs."""

import torch
import torch.nn.functional as F


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.swiglu`."""
    return F.silu(gate) * up


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Implement `hybridize.kernels.squared_relu`."""
    return F.relu(x).square()
