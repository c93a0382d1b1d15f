"""Norms whose backward pass saves only the inputs and recomputes everything else.

Each tile of rows goes through the whole computation while it is in the CPU's caches.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridize.kernels.eager.rows import reference_is_as_fast, row_tiles
from hybridize.kernels.reference import norm as reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Implement `hybridize.kernels.rms_norm`."""
    if reference_is_as_fast(x):
        return reference.rms_norm(x, weight, eps)
    y: torch.Tensor = _RMSNorm.apply(x, weight, eps)
    return y


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
    if reference_is_as_fast(x):
        return reference.gated_rms_norm(
            x, gate, weight, eps, group_size=group_size, norm_before_gate=norm_before_gate
        )
    y: torch.Tensor = _GatedRMSNorm.apply(x, gate, weight, eps, group_size, norm_before_gate)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        for values, out in row_tiles(x, y):
            normal, _ = _normalized(values.to(_wide(x)), eps)
            torch.mul(weight, normal.to(x.dtype), out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide = _wide(x)
        dx, dweight = x.new_empty(x.shape), torch.zeros_like(weight, dtype=wide)
        for dy_tile, values, out in row_tiles(dy, x, dx):
            normal, scale = _normalized(values.to(wide), ctx.eps)
            d = dy_tile.to(wide)
            dweight += (d * normal).sum(0)
            out.copy_(_norm_backward(d * weight.to(wide), normal, scale))
        return dx, dweight.to(weight.dtype), None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        group_size: int,
        norm_before_gate: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, gate, weight)
        ctx.eps, ctx.group_size, ctx.norm_before_gate = eps, group_size, norm_before_gate
        y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        for values, gates, out in row_tiles(x, gate, y):
            silu = F.silu(gates.to(_wide(x)))
            inner = values.to(_wide(x)) if norm_before_gate else values * silu
            normal, _ = _normalized(inner.unflatten(-1, (-1, group_size)), eps)
            torch.mul(weight, normal.flatten(-2).to(x.dtype), out=out)
            if norm_before_gate:
                out.mul_(silu.to(out.dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        wide, groups = _wide(x), (-1, ctx.group_size)
        dx, dgate = x.new_empty(x.shape), gate.new_empty(gate.shape)
        dweight, factor = torch.zeros_like(weight, dtype=wide), weight.to(wide)
        for dy_tile, values, gates, dx_tile, dgate_tile in row_tiles(dy, x, gate, dx, dgate):
            d, inner, gates = dy_tile.to(wide), values.to(wide), gates.to(wide)
            silu = F.silu(gates)
            if not ctx.norm_before_gate:
                inner = inner * silu
            normal, scale = _normalized(inner.unflatten(-1, groups), ctx.eps)
            flat = normal.flatten(-2)
            if ctx.norm_before_gate:
                dsilu, d = d * flat * factor, d * silu
            dweight += (d * flat).sum(0)
            dinner = _norm_backward((d * factor).unflatten(-1, groups), normal, scale).flatten(-2)
            if not ctx.norm_before_gate:
                dsilu, dinner = dinner * values, dinner * silu
            dx_tile.copy_(dinner)
            dgate_tile.copy_(torch.ops.aten.silu_backward(dsilu, gates))
        return dx, dgate, dweight.to(weight.dtype), None, None, None


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _normalized(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x`` scaled to unit root mean square, and the scale."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x * scale, scale


def _norm_backward(d: torch.Tensor, normal: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the norm's input (Zhang & Sennrich 2019, equation 9)."""
    return scale * (d - normal * (d * normal).mean(-1, keepdim=True))
