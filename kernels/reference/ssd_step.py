"""One step of the SSD recurrence, for decoding."""

import torch
import torch.nn.functional as F


def discretize(
    dt: torch.Tensor, dt_bias: torch.Tensor | None, dt_limit: tuple[float, float]
) -> torch.Tensor:
    """Return Δ of shape ``(..., heads)``: softplus(dt + dt_bias), clamped to ``dt_limit``."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    dt = dt.to(wide)
    if dt_bias is not None:
        dt = dt + dt_bias.to(wide)
    dt = F.softplus(dt)
    return dt if dt_limit == (0.0, float("inf")) else dt.clamp(*dt_limit)


def repeat_groups(grouped: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat B or C for each head: ``(..., groups, d_state)`` to ``(..., heads, d_state)``."""
    return grouped.repeat_interleave(heads // grouped.shape[-2], dim=-2)


def ssd_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """Implement `hybridize.kernels.ssd_step`."""
    heads = x.shape[1]
    wide = state.dtype
    dt = discretize(dt, dt_bias, dt_limit).to(wide)
    B, C = repeat_groups(B.to(wide), heads), repeat_groups(C.to(wide), heads)
    decay = torch.exp(dt * A.to(wide))[..., None, None]
    state.mul_(decay).add_((dt[..., None] * x.to(wide))[..., None] * B[:, :, None, :])
    y = (state @ C[..., None]).squeeze(-1)
    if D is not None:
        y = y + D.to(wide)[:, None] * x.to(wide)
    return y.to(x.dtype)
