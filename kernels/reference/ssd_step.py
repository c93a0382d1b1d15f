"""One step of the state-space recurrence, for decoding."""

import torch
import torch.nn.functional as F


def discretize(
    dt: torch.Tensor, dt_bias: torch.Tensor | None, dt_limit: tuple[float, float]
) -> torch.Tensor:
    """Turn the raw step ``(..., heads)`` into the positive one: softplus(dt + bias), clamped."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    dt = dt.to(wide)
    if dt_bias is not None:
        dt = dt + dt_bias.to(wide)
    dt = F.softplus(dt)
    return dt if dt_limit == (0.0, float("inf")) else dt.clamp(*dt_limit)


def repeat_groups(grouped: torch.Tensor, heads: int) -> torch.Tensor:
    """Give every head its group's B or C: ``(..., groups, state)`` to ``(..., heads, state)``."""
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
    """See `hybridize.kernels.ssd_step`."""
    heads = x.shape[1]
    wide = state.dtype
    step = discretize(dt, dt_bias, dt_limit).to(wide)
    B, C = repeat_groups(B.to(wide), heads), repeat_groups(C.to(wide), heads)
    decay = torch.exp(step * A.to(wide))[..., None, None]
    state.mul_(decay).add_((step[..., None] * x.to(wide))[..., None] * B[:, :, None, :])
    y = (state @ C[..., None]).squeeze(-1)
    if D is not None:
        y = y + D.to(wide)[:, None] * x.to(wide)
    return y.to(x.dtype)
