"""The state-space scan in chunks, so that matrix products do nearly all of the work.

Within a chunk the recurrence is a masked, decayed product of C, B and x; between chunks
only the state is carried (Dao & Gu 2024, arXiv 2405.21060, section 6 and listing 1).
Chunks are visited one after the other, so that no intermediate is larger than one chunk's.
"""

import torch

from hybridize.kernels.reference.ssd_step import discretize

_CHUNK = 128  # (chunk × chunk) float32 scores of a head then sit in a core's second-level cache


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
    """See `hybridize.kernels.ssd_scan`."""
    batch, length, heads, head_dim = x.shape
    groups, d_state = B.shape[-2:]
    per_group = heads // groups
    wide = torch.promote_types(x.dtype, torch.float32)
    step = discretize(dt, dt_bias, dt_limit).to(wide).transpose(1, 2)  # (batch, heads, length)
    log_decay = step * A.to(wide)[:, None]
    values = x.to(wide).transpose(1, 2) * step[..., None]  # (batch, heads, length, head_dim)
    keys, queries = B.to(wide).transpose(1, 2), C.to(wide).transpose(1, 2)

    if initial_state is None:
        state = values.new_zeros(batch, heads, head_dim, d_state)
    else:
        state = initial_state.to(wide)
    outputs = []
    for start in range(0, length, chunk_size or _CHUNK):
        stop = min(start + (chunk_size or _CHUNK), length)
        size = stop - start
        v = values[:, :, start:stop]
        k, q = keys[:, :, start:stop], queries[:, :, start:stop]
        total = log_decay[:, :, start:stop].cumsum(-1)  # log decay from the chunk's start
        decay_in = total.exp()
        decay_out = (total[..., -1:] - total).exp()
        # Only differences of one chunk's sums are taken, and never above the diagonal,
        # where they would be positive and could overflow.
        causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
        between = (total[..., :, None] - total[..., None, :]).masked_fill(~causal, -torch.inf)
        carried = decay_in[..., -1:]
        if seq_idx is not None:
            index = seq_idx[:, start:stop]
            previous = seq_idx[:, max(start - 1, 0)]
            same = (index[:, :, None] == index[:, None, :])[:, None]
            between = between.masked_fill(~same, -torch.inf)
            from_before = (index == previous[:, None])[:, None]
            decay_in = decay_in * from_before
            decay_out = decay_out * (index == index[:, -1:])[:, None]
            carried = carried * from_before[..., -1:]

        scores = (q @ k.transpose(-1, -2)).repeat_interleave(per_group, dim=1)
        y = (scores * between.exp()) @ v
        grouped_state = state.unflatten(1, (groups, per_group)).flatten(2, 3)
        from_state = (q @ grouped_state.transpose(-1, -2)).unflatten(-1, (per_group, head_dim))
        y = y + from_state.transpose(2, 3).flatten(1, 2) * decay_in[..., None]
        outputs.append(y)
        weighted = (v * decay_out[..., None]).unflatten(1, (groups, per_group))
        update = weighted.transpose(-1, -2).flatten(2, 3) @ k
        state = state * carried[..., None] + update.unflatten(2, (per_group, head_dim)).flatten(
            1, 2
        )

    y = torch.cat(outputs, dim=2).transpose(1, 2)
    if D is not None:
        y = y + D.to(wide)[:, None] * x.to(wide)
    return y.to(x.dtype), state
