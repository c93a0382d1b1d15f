"""The SSD scan in chunks, so that matrix products do nearly all of the work.

Within a chunk, the recurrence is a product of C, B and x with a matrix of decays. Only the state is
passed from chunk to chunk (Dao & Gu 2024, arXiv 2405.21060, section 6 and listing 1). A tile is a
few chunks that are computed together, so few that all intermediates fit into the CPU's caches. The
backward pass saves the inputs and the state before each tile, and recomputes everything else.

The layout of a tile is ``(batch, groups, chunks, tokens, heads of the group, head_dim)``. The heads
that share B and C are then columns of one matrix, and no large tensor is transposed. The layout of
a state is ``(batch, groups, d_state, heads × head_dim)``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hybridize.kernels.reference.packed_sequences import number_sequences
from hybridize.kernels.reference.ssd_step import discretize

_CHUNK = 64
_TILE = 1 << 17
"""Elements of a tile's decay matrices: 512 KiB in float32, half of a common second-level cache."""


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
    """Implement `hybridize.kernels.ssd_scan`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dt = discretize(dt, dt_bias, dt_limit).to(wide)
    if initial_state is None:
        batch, _, heads, head_dim = x.shape
        initial_state = x.new_zeros(batch, heads, head_dim, B.shape[-1], dtype=wide)
    y, state = _Scan.apply(
        x,
        dt,
        dt * A.to(wide),
        B,
        C,
        None if D is None else D.to(wide),
        initial_state.to(wide),
        None if seq_idx is None else number_sequences(seq_idx),
        chunk_size or _CHUNK,
    )
    return y, state


class _Scan(torch.autograd.Function):
    """The scan, given Δ and the log decay Δ · A of each token and head."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        log_decay: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        initial_state: torch.Tensor,
        seq_idx: torch.Tensor | None,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scan = _Operands(x, dt, log_decay, B, C, seq_idx)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        state, tile_states = scan.grouped(initial_state), []
        with torch.autocast(x.device.type, enabled=False):  # the code below chooses the dtypes
            for start, chunks, size in _tiles(x, chunk_size):
                tile_states.append(state)
                tile = scan.tile(start, chunks, size)
                states, state = tile.states(state)
                tile.write(_head_tile(y, start, chunks, size, B.shape[2]), states, D)
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(x, dt, log_decay, B, C, D, seq_idx, *tile_states)
        return y, scan.by_head(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dstate: torch.Tensor) -> tuple[Any, ...]:
        x, dt, log_decay, B, C, D, seq_idx, *tile_states = ctx.saved_tensors
        scan = _Operands(x, dt, log_decay, B, C, seq_idx)
        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C))
        ddt, dlog_decay = torch.empty_like(dt), torch.empty_like(log_decay)
        dD = None if D is None else (dy * x).sum((0, 1, 3), dtype=D.dtype)
        after = scan.grouped(dstate)
        into = (dx, ddt, dlog_decay, dB, dC)
        tiles = zip(reversed(_tiles(x, ctx.chunk_size)), reversed(tile_states), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            for (start, chunks, size), before in tiles:
                tile = scan.tile(start, chunks, size)
                states, _ = tile.states(before)
                after = tile.gradients(dy, states, after, start, into)
        if D is not None:
            dx.addcmul_(dy, D.to(dx.dtype)[:, None])
        return dx, ddt, dlog_decay, dB, dC, dD, scan.by_head(after), None, None


def _tiles(x: torch.Tensor, chunk_size: int) -> list[tuple[int, int, int]]:
    """Return ``(start, chunks, tokens per chunk)`` of each tile of the sequence."""
    batch, length, heads, _ = x.shape
    chunks_per_tile = max(1, _TILE // (batch * heads * chunk_size**2))
    whole = length // chunk_size
    tiles = [
        (chunk * chunk_size, min(chunks_per_tile, whole - chunk), chunk_size)
        for chunk in range(0, whole, chunks_per_tile)
    ]
    remainder = length - whole * chunk_size
    return [*tiles, (whole * chunk_size, 1, remainder)] if remainder else tiles


@dataclass(frozen=True)
class _Operands:
    """The inputs of a scan, ``(batch, length, …)`` each."""

    x: torch.Tensor
    dt: torch.Tensor
    log_decay: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    seq_idx: torch.Tensor | None

    def grouped(self, state: torch.Tensor) -> torch.Tensor:
        """Convert ``(batch, heads, head_dim, d_state)`` to the layout of states in tiles."""
        return state.unflatten(1, (self.B.shape[2], -1)).flatten(2, 3).mT.contiguous()

    def by_head(self, grouped: torch.Tensor) -> torch.Tensor:
        """Convert states in the layout of tiles to ``(batch, heads, head_dim, d_state)``."""
        return grouped.mT.unflatten(2, (-1, self.x.shape[3])).flatten(1, 2).contiguous()

    def tile(self, start: int, chunks: int, size: int) -> "_Tile":
        """Return the tile of ``chunks`` chunks of ``size`` tokens that begins at ``start``."""
        span = (start, chunks, size, self.B.shape[2])
        wide = self.dt.dtype
        total = _head_tile(self.log_decay, *span).cumsum(3)  # log decay from the chunk's start
        end = total[:, :, :, -1:]
        decay_from_start, decay_to_end, decay_chunk = total.exp(), (end - total).exp_(), end.exp()
        # The decay between two tokens is the exponential of a difference, because a quotient of two
        # decays could be 0 / 0. Above the diagonal, `exp` may overflow; `tril_` sets these to 0.
        by_head = total.mT.contiguous()
        decay_within = torch.sub(by_head[..., :, None], by_head[..., None, :]).exp_().tril_()
        if self.seq_idx is not None:
            index = self.seq_idx[:, start : start + chunks * size].unflatten(1, (chunks, size))
            index = index[:, None, :, :, None]
            last = self.seq_idx[:, max(start - 1, 0) : start + chunks * size - 1]
            if start == 0:
                last = torch.cat([last[:, :1], last], 1) if last.shape[1] else self.seq_idx[:, :1]
            previous = last[:, ::size][:, None, :, None, None]  # of the token before each chunk
            decay_within.mul_((index == index.mT)[:, :, :, None])
            decay_from_start.mul_(index == previous)
            decay_to_end.mul_(index == index[:, :, :, -1:])
            decay_chunk.mul_(index[:, :, :, -1:] == previous)
        return _Tile(
            x=_head_tile(self.x, *span).to(wide),
            dt=_head_tile(self.dt, *span),
            B=_group_tile(self.B, start, chunks, size).to(wide).contiguous(),
            C=_group_tile(self.C, start, chunks, size).to(wide).contiguous(),
            decay_within=decay_within,
            decay_from_start=decay_from_start,
            decay_to_end=decay_to_end,
            decay_chunk=decay_chunk,
        )


@dataclass
class _Tile:
    """A few chunks of a scan. All decays are factors between 0 and 1.

    Attributes:
        x: ``(batch, groups, chunks, tokens, heads, head_dim)``.
        dt: ``(batch, groups, chunks, tokens, heads)``.
        B, C: ``(batch, groups, chunks, tokens, d_state)``.
        decay_within: decay from one token of the chunk to another, ``(…, heads, to, from)``.
        decay_from_start: decay from before the chunk to each token, ``(…, tokens, heads)``.
        decay_to_end: decay from each token to the chunk's end, ``(…, tokens, heads)``.
        decay_chunk: decay from before the chunk to its end, ``(…, 1, heads)``.
    """

    x: torch.Tensor
    dt: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    decay_within: torch.Tensor
    decay_from_start: torch.Tensor
    decay_to_end: torch.Tensor
    decay_chunk: torch.Tensor

    def __post_init__(self) -> None:
        self.values = _scale_channels(self.x, self.dt)
        self.head_dim = self.x.shape[-1]

    def states(self, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the state before each chunk, ``(batch, groups, chunks, …)``, and the last one."""
        updates = self.B.mT @ _scale_channels(self.values, self.decay_to_end).flatten(4)
        states = torch.empty_like(updates)
        for chunk in range(updates.shape[2]):
            states[:, :, chunk] = before
            before = torch.addcmul(updates[:, :, chunk], before, self._state_decay(chunk))
        return states, before

    def write(self, out: torch.Tensor, states: torch.Tensor, D: torch.Tensor | None) -> None:
        """Write y to ``out``, which has the layout of ``x``."""
        weights = self.decay_within.mul_((self.C @ self.B.mT)[:, :, :, None])
        y = self._from_states(states)
        within = (weights @ self.values.transpose(3, 4)).transpose(3, 4)
        if D is None:
            torch.addcmul(within, y, self.decay_from_start[..., None], out=out)
        else:
            torch.addcmul(within, y, self.decay_from_start[..., None], out=y)
            skips = D.unflatten(0, (y.shape[1], -1))[:, None, None, :, None]
            torch.addcmul(y, self.x, skips, out=out)

    def gradients(
        self,
        dy_all: torch.Tensor,
        states: torch.Tensor,
        after: torch.Tensor,
        start: int,
        into: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """Write the tile's part of all gradients; return the gradient of the state before it.

        Let L be the log decay summed up from the chunk's start (``dtotal`` is its gradient), and
        v = Δ·x. Then ``dL[t] = dy[t]·y[t] - v[t]·dv[t]``. The chunk's last token has one more term,
        from the state after the chunk.

        Args:
            dy_all: gradient of all outputs, ``(batch, length, heads, head_dim)``.
            states: the states before each chunk, from `states`.
            after: gradient of the state after the tile.
            start: the tile's first token.
            into: where to write the gradients of x, Δ, log decay, B and C.
        """
        _, groups, chunks, size, _, _ = self.x.shape
        span = (start, chunks, size)
        dx, ddt, dlog_decay, dB, dC = into
        dy = _head_tile(dy_all, *span, groups).to(self.values.dtype)
        dy_at_start = _scale_channels(dy, self.decay_from_start).flatten(4)
        from_outputs = self.C.mT @ dy_at_start
        dstates = torch.empty_like(from_outputs)
        for chunk in reversed(range(chunks)):
            dstates[:, :, chunk] = after
            after = torch.addcmul(from_outputs[:, :, chunk], after, self._state_decay(chunk))

        values_by_head, dy_by_head = (t.transpose(3, 4).contiguous() for t in (self.values, dy))
        products = self.C @ self.B.mT  # (batch, groups, chunks, to, from)
        dproducts = (dy_by_head @ values_by_head.mT).mul_(self.decay_within)
        dproducts = dproducts.sum(3) if dproducts.shape[3] > 1 else dproducts.squeeze(3)
        weights = self.decay_within.mul_(products[:, :, :, None])
        y = self._from_states(states)
        torch.addcmul(
            (weights @ values_by_head).transpose(3, 4), y, self.decay_from_start[..., None], out=y
        )
        dy_dot_y = y.mul_(dy).sum(-1)
        dv = (self.B @ dstates).unflatten(4, (-1, self.head_dim)).mul_(self.decay_to_end[..., None])
        to_last_state = (self.values * dv).sum((3, 5))
        dv += (weights.mT @ dy_by_head).transpose(3, 4)
        values_at_end = _scale_channels(self.values, self.decay_to_end).flatten(4)
        dB_tile = _add_matmul(values_at_end @ dstates.mT, dproducts.mT, self.C)
        dC_tile = _add_matmul(dy_at_start @ states.mT, dproducts, self.B)

        x_dot_dv = (self.x * dv).sum(-1)
        dtotal = dy_dot_y.sub_(self.dt * x_dot_dv)
        overlap = (dstates * states).sum(3).unflatten(3, (-1, self.head_dim)).sum(-1)
        dtotal[:, :, :, -1] += to_last_state + overlap * self.decay_chunk[:, :, :, 0]
        dlog = dtotal.flip(3).cumsum(3).flip(3)
        torch.mul(dv, self.dt[..., None], out=dv)
        for full, part in ((dx, dv), (ddt, x_dot_dv), (dlog_decay, dlog)):
            _head_tile(full, *span, groups).copy_(part)
        for full, part in ((dB, dB_tile), (dC, dC_tile)):
            _group_tile(full, *span).copy_(part)
        return after

    def _from_states(self, states: torch.Tensor) -> torch.Tensor:
        """Return each token's output from the state before its chunk, without the decay."""
        return (self.C @ states).unflatten(4, (-1, self.head_dim))

    def _state_decay(self, chunk: int) -> torch.Tensor:
        """Return the decay of a state over a chunk, repeated for each channel of the head."""
        return self.decay_chunk[:, :, chunk].repeat_interleave(self.head_dim, 3)


def _head_tile(full: torch.Tensor, start: int, chunks: int, size: int, groups: int) -> torch.Tensor:
    """Return a tile as a view of ``(batch, length, heads, …)``."""
    part = full[:, start : start + chunks * size].unflatten(2, (groups, -1))
    return part.unflatten(1, (chunks, size)).movedim(3, 1)


def _group_tile(full: torch.Tensor, start: int, chunks: int, size: int) -> torch.Tensor:
    """Return a tile as a view of B or C, ``(batch, length, groups, d_state)``."""
    part = full[:, start : start + chunks * size]
    return part.unflatten(1, (chunks, size)).movedim(3, 1)


def _scale_channels(tile: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply all channels of a token and head by one factor; the result is contiguous."""
    return torch.mul(tile, factors[..., None], out=factors.new_empty(tile.shape))


def _add_matmul(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add ``a @ b`` to ``to`` in place, with any number of leading dimensions."""
    flat = to.flatten(0, -3)
    torch.baddbmm(flat, a.flatten(0, -3), b.flatten(0, -3), out=flat)
    return to
