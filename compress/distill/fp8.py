"""Quantization-aware training: linear layers compute with weights and inputs rounded to FP8.

This is the recipe of Nemotron-H (arXiv 2504.03624): E4M3 weights and activations, E5M2 gradients,
scales from the current values of each tensor, and first and last blocks that are not rounded.
Weights stay in float32. Gradients pass the rounding unchanged (straight-through estimator, Bengio
et al. 2013, arXiv 1308.3432). The quantization scheme decides which layers are rounded and which
values share a scale.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.compress.quantize.kept_blocks import choose_ends, parse_keep
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.targets import find_targets
from hybridize.errors import InputError
from hybridize.kernels import fp8_linear, fp8_quantize
from hybridize.kernels.reference.fp8 import fp8_dequantize
from hybridize.modeling.model import HybridForCausalLM


def fp8_layers(directory: Path, scheme: str, keep_bf16: int | None) -> tuple[str, ...]:
    """Return the names of the linear layers that `hybridize.quantize` would quantize.

    Args:
        directory: the checkpoint; only its configuration is read.
        scheme: one of `SCHEMES`.
        keep_bf16: number of first and of last blocks that are not quantized; None for the default
            of `hybridize.quantize`.

    Raises:
        InputError: the scheme can quantize none of the layers.
    """
    with CheckpointReader(directory) as reader:
        format_, config = read_config(reader)
    targets = [t for t in find_targets(format_, config, SCHEMES[scheme]) if not t.obstacle]
    blocks = sorted({target.block for target in targets})
    if not blocks:
        raise InputError(
            f"`fp8={scheme}`: can quantize no layer of {directory}; choose another scheme"
        )
    kept = choose_ends(parse_keep(keep_bf16, blocks), blocks, config.layout)
    kept_blocks = {block.block for block in kept}
    return tuple(
        name.removesuffix(".weight")
        for target in targets
        if target.block not in kept_blocks
        for name in target.entry.parameters
    )


def train_in_fp8(model: HybridForCausalLM, layers: tuple[str, ...], scheme: str) -> None:
    """Make some linear layers compute in FP8. Their parameters do not change.

    Args:
        model: the student.
        layers: the names of the layers, see `fp8_layers`.
        scheme: one of `SCHEMES`.
    """
    for name in layers:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.__class__ = FP8TrainingLinear
        layer.scheme = SCHEMES[scheme]  # type: ignore[assignment]


class FP8TrainingLinear(nn.Linear):
    """An `nn.Linear` that multiplies in FP8 in the forward and the backward pass."""

    scheme: Any  # a Scheme, which nn.Module's attribute types do not allow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)`` in the computation's dtype."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # autocast does not support FP8
            y: torch.Tensor = _Rounded.apply(x, self.weight, self.bias, self.scheme)
        return y


class _Rounded(torch.autograd.Function):
    """A linear layer with rounded input and weight, and with rounded gradients in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scheme: Scheme,
    ) -> torch.Tensor:
        activations = scheme.quantization.activations
        rounded_weight = scheme.quantize(weight)
        rounded_x = fp8_quantize(x.flatten(0, -2), activations)
        ctx.save_for_backward(*rounded_x, *rounded_weight)
        ctx.shape, ctx.bias = x.shape, bias is not None
        return fp8_linear(x, *rounded_weight, bias, activations=activations)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        grad_rows = grad.flatten(0, -2)
        values, scale = fp8_quantize(grad_rows, "tensor", dtype=torch.float8_e5m2)
        rounded = fp8_dequantize(values, scale, grad.dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = rounded @ fp8_dequantize(weight, weight_scale, grad.dtype)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = (rounded.t() @ fp8_dequantize(x, x_scale, grad.dtype)).float()
        if ctx.bias and ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0, dtype=torch.float32)
        return grad_x, grad_weight, grad_bias, None
