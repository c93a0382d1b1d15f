"""A linear layer with weights in FP8 and multiplication in FP8."""

from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from hybridize.kernels import fp8_linear


class FP8Linear(nn.Module):
    """Replaces an `nn.Linear` for inference.

    When the model is moved to another dtype, the weights stay in FP8 and the scales in float32.

    Args:
        weight: ``(rows, columns)`` in float8_e4m3fn.
        weight_scale: its scales, see `hybridize.kernels.fp8_quantize`.
        bias: ``(rows,)`` or None.
        activations: granularity of the activations' scales: ``tensor``, ``row`` or ``group``.
        input_scale: ``(1,)``, the scale of static activations; None to compute scales at run time.
    """

    weight_scale: torch.Tensor
    input_scale: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        activations: str,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight_scale", weight_scale.float())
        self.register_buffer("input_scale", None if input_scale is None else input_scale.float())
        self.activations = activations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., columns)`` to ``(..., rows)``."""
        return fp8_linear(
            x,
            self.weight,
            self.weight_scale,
            self.bias,
            activations=self.activations,
            input_scale=self.input_scale,
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        weight, scales = self.weight.data, dict(self.named_buffers())
        super()._apply(fn, recurse)
        # Follow a move to another device, but undo the conversion of `model.to(bfloat16)`.
        self.weight.data = weight.to(self.weight.device)
        for name, scale in scales.items():
            setattr(self, name, scale.to(self.weight.device))
        return self
