"""The SSD scan as a recurrence, one token after the other."""

import torch

from hybridize.kernels.reference.ssd_step import discretize, repeat_groups


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implement `hybridize.kernels.ssd_scan`; ``chunk_size`` has no effect here."""
    del chunk_size
    batch, length, heads, head_dim = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    dt = discretize(dt, dt_bias, dt_limit).to(wide)
    B, C = repeat_groups(B.to(wide), heads), repeat_groups(C.to(wide), heads)
    values = x.to(wide)
    state = values.new_zeros(batch, heads, head_dim, B.shape[-1])
    if initial_state is not None:
        state = state + initial_state.to(wide)
    outputs = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            same = seq_idx[:, t] == seq_idx[:, t - 1]
            state = torch.where(same[:, None, None, None], state, torch.zeros_like(state))
        decay = torch.exp(dt[:, t] * A.to(wide))[..., None, None]
        update = (dt[:, t, :, None] * values[:, t])[..., None] * B[:, t, :, None, :]
        state = decay * state + update
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(wide)[:, None] * values
    return y.to(x.dtype), state
