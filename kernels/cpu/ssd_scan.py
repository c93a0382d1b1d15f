"""The state-space scan in chunks, so that matrix products do nearly all of the work.

Within a chunk the recurrence is a masked, decayed product of C, B and x; between chunks only the
state is carried (Dao & Gu 2024, arXiv 2405.21060, section 6 and listing 1). A few chunks, a tile,
are worked on at a time, so that no intermediate outgrows the processor's caches. The backward
keeps the inputs and the state before every tile, and computes the rest again.

Tiles are laid out ``(batch, groups, chunks, heads of the group, head_dim, tokens)``: heads that
share B and C then are rows of one matrix, and decays, one a token, run along the last dimension.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

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
    """See `hybridize.kernels.ssd_scan`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    step = discretize(dt, dt_bias, dt_limit).to(wide)
    if initial_state is None:
        batch, _, heads, head_dim = x.shape
        initial_state = x.new_zeros(batch, heads, head_dim, B.shape[-1], dtype=wide)
    if seq_idx is not None:  # count the sequences: a number that comes again is a new one
        seq_idx = (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(1)
    y, state = _Scan.apply(
        x,
        step,
        step * A.to(wide),
        B,
        C,
        None if D is None else D.to(wide),
        initial_state.to(wide),
        seq_idx,
        chunk_size or _CHUNK,
    )
    return y, state


class _Scan(torch.autograd.Function):
    """The scan over steps that are positive already, and their decays' logarithms."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        step: torch.Tensor,
        log_decay: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        initial_state: torch.Tensor,
        seq_idx: torch.Tensor | None,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scan = _Operands(x, step, log_decay, B, C, seq_idx)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        state, befores = scan.grouped(initial_state), []
        with torch.autocast(x.device.type, enabled=False):  # dtypes are chosen here
            for start, chunks, size in _tiles(x, chunk_size):
                befores.append(state)
                tile = scan.tile(start, chunks, size)
                states = tile.states(state)
                state = states[-1]
                _write(y, tile.outputs(states), start)
        if D is not None:
            y.addcmul_(x, D.to(x.dtype)[:, None])
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(x, step, log_decay, B, C, D, seq_idx, *befores)
        return y, state.reshape(initial_state.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dstate: torch.Tensor) -> tuple[Any, ...]:
        x, step, log_decay, B, C, D, seq_idx, *befores = ctx.saved_tensors
        scan = _Operands(x, step, log_decay, B, C, seq_idx)
        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C))
        dstep, dlog = torch.empty_like(step), torch.empty_like(log_decay)
        dD = None if D is None else (dy * x).sum((0, 1, 3), dtype=D.dtype)
        after = scan.grouped(dstate)
        into = (dx, dstep, dlog, dB, dC)
        tiles = zip(reversed(_tiles(x, ctx.chunk_size)), reversed(befores), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            for (start, chunks, size), before in tiles:
                tile = scan.tile(start, chunks, size)
                after = tile.gradients(dy, tile.states(before), after, start, into)
        if D is not None:
            dx.addcmul_(dy, D.to(dx.dtype)[:, None])
        return dx, dstep, dlog, dB, dC, dD, after.reshape(dstate.shape), None, None


def _tiles(x: torch.Tensor, chunk_size: int) -> list[tuple[int, int, int]]:
    """Return ``(start, chunks, tokens of a chunk)`` of the tiles that make up the sequence."""
    batch, length, heads, _ = x.shape
    at_once = max(1, _TILE // (batch * heads * chunk_size**2))
    whole = length // chunk_size
    tiles = [
        (chunk * chunk_size, min(at_once, whole - chunk), chunk_size)
        for chunk in range(0, whole, at_once)
    ]
    rest = length - whole * chunk_size
    return [*tiles, (whole * chunk_size, 1, rest)] if rest else tiles


@dataclass(frozen=True)
class _Operands:
    """What a scan reads: ``(batch, length, …)`` each."""

    x: torch.Tensor
    step: torch.Tensor
    log_decay: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    seq_idx: torch.Tensor | None

    def grouped(self, state: torch.Tensor) -> torch.Tensor:
        """Stack the states of a group's heads: ``(batch, groups, heads × head_dim, d_state)``."""
        return state.unflatten(1, (self.B.shape[2], -1)).flatten(2, 3)

    def tile(self, start: int, chunks: int, size: int) -> "_Tile":
        """Lay out some chunks, with all that depends on the decays."""
        piece, groups = slice(start, start + chunks * size), self.B.shape[2]
        wide = self.step.dtype

        def per_head(scalars: torch.Tensor) -> torch.Tensor:
            grouped = scalars[:, piece].unflatten(2, (groups, -1)).unflatten(1, (chunks, size))
            return grouped.permute(0, 3, 1, 4, 2)  # (batch, groups, chunks, heads, tokens)

        step = per_head(self.step).contiguous()
        total = per_head(self.log_decay).cumsum(-1)  # log decay from the chunk's start
        # Only differences of one chunk's sums are taken, and what is above one is not kept.
        between = torch.sub(total[..., None, :], total[..., :, None]).exp_().triu_()
        carried = total[..., -1:].exp()
        decay_in, decay_out = total.exp(), (total[..., -1:] - total).exp_()
        if self.seq_idx is not None:
            index = self.seq_idx[:, piece].unflatten(1, (chunks, size))[:, None, :, None]
            last = self.seq_idx[:, max(start - 1, 0) : start + chunks * size - 1]
            if start == 0:
                last = torch.cat([last[:, :1], last], 1) if last.shape[1] else self.seq_idx[:, :1]
            previous = last[:, ::size][:, None, :, None, None]  # before each chunk
            between.mul_(index[..., None, :] == index[..., :, None])
            decay_in.mul_(index == previous)
            decay_out.mul_(index == index[..., -1:])
            carried = carried * (index[..., -1:] == previous)
        return _Tile(
            x=_laid_out(self.x, piece, chunks, groups, wide),
            step=step,
            keys=_per_group(self.B, piece, chunks, wide),
            queries=_per_group(self.C, piece, chunks, wide),
            between=between,
            decay_in=decay_in,
            decay_out=decay_out,
            carried=carried,
        )


@dataclass
class _Tile:
    """A few chunks of a scan.

    Attributes:
        x: ``(batch, groups, chunks, heads, head_dim, tokens)``.
        step: ``(batch, groups, chunks, heads, tokens)``.
        keys, queries: B and C, ``(batch, groups, chunks, tokens, d_state)``.
        between: what is left at one token of what another put in, ``(…, heads, from, to)``.
        decay_in: what is left of the state before the chunk, ``(…, heads, tokens)``.
        decay_out: what is left of a token at the chunk's end, ``(…, heads, tokens)``.
        carried: what is left of the state before the chunk at its end, ``(…, heads, 1)``.
    """

    x: torch.Tensor
    step: torch.Tensor
    keys: torch.Tensor
    queries: torch.Tensor
    between: torch.Tensor
    decay_in: torch.Tensor
    decay_out: torch.Tensor
    carried: torch.Tensor

    def __post_init__(self) -> None:
        self.values = self.x * self.step[..., None, :]
        self.head_dim = self.x.shape[4]

    def states(self, before: torch.Tensor) -> list[torch.Tensor]:
        """Return the state before each chunk, and the one after all of them."""
        kept = (self.values * self.decay_out[..., None, :]).flatten(3, 4)
        updates = kept @ self.keys
        states = [before]
        for chunk in range(updates.shape[2]):
            states.append(torch.addcmul(updates[:, :, chunk], states[-1], self._left(chunk)))
        return states

    def outputs(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Return y without the skip connection, laid out like ``x``."""
        weights = self.between.mul_((self.keys @ self.queries.mT)[:, :, :, None])
        before = torch.stack(states[:-1], 2)
        y = self._by_head(before @ self.queries.mT).mul_(self.decay_in[..., None, :])
        return _added_product(y, self.values, weights)

    def gradients(
        self,
        dy_all: torch.Tensor,
        states: list[torch.Tensor],
        after: torch.Tensor,
        start: int,
        into: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """Write the tile's part of all gradients; return that of the state before it.

        The decays' own follows from what is known: with T the summed log decays of a chunk,
        ``dT[t] = dy[t]·y[t] - v[t]·dv[t]``, and at the chunk's last token, in addition, what went
        into its last state.

        Args:
            dy_all: of all outputs, ``(batch, length, heads, head_dim)``.
            states: see `states`.
            after: of the state after the tile.
            start: its first token.
            into: gradients of x, step, log decay, B and C.
        """
        _, groups, chunks, _, _, size = self.x.shape
        piece = slice(start, start + chunks * size)
        dx, dstep, dlog, dB, dC = into
        dy = _laid_out(dy_all, piece, chunks, groups, self.x.dtype)
        faded = (dy * self.decay_in[..., None, :]).flatten(3, 4)
        local = faded @ self.queries
        afters = [after]
        for chunk in reversed(range(chunks)):
            afters.append(torch.addcmul(local[:, :, chunk], afters[-1], self._left(chunk)))
        before = afters.pop()
        dstates, states_in = torch.stack(afters[::-1], 2), torch.stack(states[:-1], 2)

        products = self.keys @ self.queries.mT  # (batch, groups, chunks, from, to)
        dproducts = (self.values.mT @ dy).mul_(self.between)
        dproducts = dproducts.sum(3) if dproducts.shape[3] > 1 else dproducts.squeeze(3)
        weights = self.between.mul_(products[:, :, :, None])
        dv = self._by_head(dstates @ self.keys.mT).mul_(self.decay_out[..., None, :])
        y = self._by_head(states_in @ self.queries.mT).mul_(self.decay_in[..., None, :])
        along = _added_product(y, self.values, weights).mul_(dy).sum(-2)
        put_in = (self.values * dv).sum((-2, -1))[..., None]  # what went into the last state
        dv = _added_product(dv, dy, weights.mT)
        kept = (self.values * self.decay_out[..., None, :]).flatten(3, 4)
        dkeys = _added_product(kept.mT @ dstates, dproducts, self.queries)
        dqueries = _added_product(faded.mT @ states_in, dproducts.mT, self.keys)

        xdv = (self.x * dv).sum(-2)
        summed = along.sub_(self.step * xdv)
        overlap = (dstates * states_in).unflatten(3, (-1, self.head_dim)).sum((-2, -1))
        summed[..., -1:] += put_in + overlap[..., None] * self.carried
        summed = summed.flip(-1).cumsum(-1).flip(-1)
        _write(dx, dv.mul_(self.step[..., None, :]), start)
        for full, part in ((dstep, xdv), (dlog, summed)):
            full[:, piece] = part.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(1, 2)
        for full, part in ((dB, dkeys), (dC, dqueries)):
            full[:, piece].unflatten(1, (chunks, size)).copy_(part.permute(0, 2, 3, 1, 4))
        return before

    def _left(self, chunk: int) -> torch.Tensor:
        """Return what is left of a state after a chunk, as a factor of stacked states."""
        return self.carried[:, :, chunk].repeat_interleave(self.head_dim, 2)

    def _by_head(self, stacked: torch.Tensor) -> torch.Tensor:
        return stacked.unflatten(3, (-1, self.head_dim))


def _laid_out(
    full: torch.Tensor, piece: slice, chunks: int, groups: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return some tokens of ``(batch, length, heads, head_dim)`` as a tile has them."""
    part = full[:, piece].unflatten(2, (groups, -1)).unflatten(1, (chunks, -1))
    return _contiguous(part.permute(0, 3, 1, 4, 5, 2), dtype)


def _per_group(full: torch.Tensor, piece: slice, chunks: int, dtype: torch.dtype) -> torch.Tensor:
    part = full[:, piece].unflatten(1, (chunks, -1)).permute(0, 3, 1, 2, 4)
    return _contiguous(part, dtype)


def _contiguous(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy to another layout and dtype in one pass."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


def _write(full: torch.Tensor, tile: torch.Tensor, start: int) -> None:
    """Put a tile's values where they belong in ``(batch, length, heads, head_dim)``."""
    chunks, size, groups = tile.shape[2], tile.shape[-1], tile.shape[1]
    part = full[:, start : start + chunks * size].unflatten(2, (groups, -1))
    part.unflatten(1, (chunks, size)).copy_(tile.permute(0, 2, 5, 1, 3, 4))


def _added_product(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ``to + a @ b``, in place, over any number of leading dimensions."""
    flat = to.flatten(0, -3)
    torch.baddbmm(flat, a.flatten(0, -3), b.flatten(0, -3), out=flat)
    return to
