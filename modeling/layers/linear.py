"""Linear layers."""

import torch
from torch import nn

from hybridize.kernels import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` that is fast in bfloat16 and float16 on every CPU.

    Most CPUs have no native matrix multiplication in these dtypes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return linear(input, self.weight, self.bias)
