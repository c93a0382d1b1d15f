"""Random operands for the tests of the kernels."""

import torch


def draw(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> torch.Tensor:
    """Return normal random numbers; the same shape and seed give the same float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)
