"""The state-space scan in chunks, so that matrix products do nearly all of the work.

Within a chunk the recurrence is a masked, decayed product of C, B and x; between chunks only the
state is carried (Dao & Gu 2024, arXiv 2405.21060, section 6 and listing 1). A few chunks, a tile,
are worked on at a time, so that no intermediate outgrows the processor's caches. The backward
keeps the inputs and the state before every tile, and computes the rest again.

Tiles are laid out ``(batch, groups, chunks, tokens, heads of the group, head_dim)``, as operands
are but for the groups: heads that share B and C then are columns of one matrix, and nothing large
is transposed. States are, instead: ``(batch, groups, d_state, heads × head_dim)``.
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
                states, state = tile.states(state)
                tile.write(_laid_out(y, start, chunks, size, B.shape[2]), states, D)
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(x, step, log_decay, B, C, D, seq_idx, *befores)
        return y, scan.by_head(state)

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
                states, _ = tile.states(before)
                after = tile.gradients(dy, states, after, start, into)
        if D is not None:
            dx.addcmul_(dy, D.to(dx.dtype)[:, None])
        return dx, dstep, dlog, dB, dC, dD, scan.by_head(after), None, None


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
        """Put the states of a group's heads side by side, as tiles have them."""
        return state.unflatten(1, (self.B.shape[2], -1)).flatten(2, 3).mT.contiguous()

    def by_head(self, grouped: torch.Tensor) -> torch.Tensor:
        """Undo `grouped`: ``(batch, heads, head_dim, d_state)``."""
        return grouped.mT.unflatten(2, (-1, self.x.shape[3])).flatten(1, 2).contiguous()

    def tile(self, start: int, chunks: int, size: int) -> "_Tile":
        """Lay out some chunks, with all that depends on the decays."""
        place = (start, chunks, size, self.B.shape[2])
        wide = self.step.dtype
        total = _laid_out(self.log_decay, *place).cumsum(3)  # log decay from the chunk's start
        end = total[:, :, :, -1:]
        decay_in, decay_out, carried = total.exp(), (end - total).exp_(), end.exp()
        # Only differences of one chunk's sums are taken, and what is above one is not kept.
        by_head = total.mT.contiguous()
        between = torch.sub(by_head[..., :, None], by_head[..., None, :]).exp_().tril_()
        if self.seq_idx is not None:
            index = self.seq_idx[:, start : start + chunks * size].unflatten(1, (chunks, size))
            index = index[:, None, :, :, None]
            last = self.seq_idx[:, max(start - 1, 0) : start + chunks * size - 1]
            if start == 0:
                last = torch.cat([last[:, :1], last], 1) if last.shape[1] else self.seq_idx[:, :1]
            previous = last[:, ::size][:, None, :, None, None]  # before each chunk
            between.mul_((index == index.mT)[:, :, :, None])
            decay_in.mul_(index == previous)
            decay_out.mul_(index == index[:, :, :, -1:])
            carried.mul_(index[:, :, :, -1:] == previous)
        return _Tile(
            x=_laid_out(self.x, *place).to(wide),
            step=_laid_out(self.step, *place),
            keys=_per_group(self.B, start, chunks, size).to(wide).contiguous(),
            queries=_per_group(self.C, start, chunks, size).to(wide).contiguous(),
            between=between,
            decay_in=decay_in,
            decay_out=decay_out,
            carried=carried,
        )


@dataclass
class _Tile:
    """A few chunks of a scan.

    Attributes:
        x: ``(batch, groups, chunks, tokens, heads, head_dim)``.
        step: ``(batch, groups, chunks, tokens, heads)``.
        keys, queries: B and C, ``(batch, groups, chunks, tokens, d_state)``.
        between: what is left at one token of what another put in, ``(…, heads, to, from)``.
        decay_in: what is left of the state before the chunk, ``(…, tokens, heads)``.
        decay_out: what is left of a token at the chunk's end, ``(…, tokens, heads)``.
        carried: what is left of the state before the chunk at its end, ``(…, 1, heads)``.
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
        self.values = _scaled(self.x, self.step)
        self.head_dim = self.x.shape[-1]

    def states(self, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states before each chunk, ``(batch, groups, chunks, …)``, and the last."""
        updates = self.keys.mT @ _scaled(self.values, self.decay_out).flatten(4)
        states = torch.empty_like(updates)
        for chunk in range(updates.shape[2]):
            states[:, :, chunk] = before
            before = torch.addcmul(updates[:, :, chunk], before, self._left(chunk))
        return states, before

    def write(self, out: torch.Tensor, states: torch.Tensor, D: torch.Tensor | None) -> None:
        """Write y, laid out like ``x``."""
        weights = self.between.mul_((self.queries @ self.keys.mT)[:, :, :, None])
        y = self._recalled(states)
        local = (weights @ self.values.transpose(3, 4)).transpose(3, 4)
        if D is None:
            torch.addcmul(local, y, self.decay_in[..., None], out=out)
        else:
            torch.addcmul(local, y, self.decay_in[..., None], out=y)
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
        _, groups, chunks, size, _, _ = self.x.shape
        place = (start, chunks, size)
        dx, dstep, dlog, dB, dC = into
        dy = _laid_out(dy_all, *place, groups).to(self.values.dtype)
        faded = _scaled(dy, self.decay_in).flatten(4)
        local = self.queries.mT @ faded
        dstates = torch.empty_like(local)
        for chunk in reversed(range(chunks)):
            dstates[:, :, chunk] = after
            after = torch.addcmul(local[:, :, chunk], after, self._left(chunk))

        values_by_head, dy_by_head = (t.transpose(3, 4).contiguous() for t in (self.values, dy))
        products = self.queries @ self.keys.mT  # (batch, groups, chunks, to, from)
        dproducts = (dy_by_head @ values_by_head.mT).mul_(self.between)
        dproducts = dproducts.sum(3) if dproducts.shape[3] > 1 else dproducts.squeeze(3)
        weights = self.between.mul_(products[:, :, :, None])
        y = self._recalled(states)
        torch.addcmul(
            (weights @ values_by_head).transpose(3, 4), y, self.decay_in[..., None], out=y
        )
        along = y.mul_(dy).sum(-1)
        dv = (self.keys @ dstates).unflatten(4, (-1, self.head_dim)).mul_(self.decay_out[..., None])
        put_in = (self.values * dv).sum((3, 5))  # what went into the last state
        dv += (weights.mT @ dy_by_head).transpose(3, 4)
        kept = _scaled(self.values, self.decay_out).flatten(4)
        dkeys = _added_product(kept @ dstates.mT, dproducts.mT, self.queries)
        dqueries = _added_product(faded @ states.mT, dproducts, self.keys)

        xdv = (self.x * dv).sum(-1)
        summed = along.sub_(self.step * xdv)
        overlap = (dstates * states).sum(3).unflatten(3, (-1, self.head_dim)).sum(-1)
        summed[:, :, :, -1] += put_in + overlap * self.carried[:, :, :, 0]
        summed = summed.flip(3).cumsum(3).flip(3)
        torch.mul(dv, self.step[..., None], out=dv)
        for full, part in ((dx, dv), (dstep, xdv), (dlog, summed)):
            _laid_out(full, *place, groups).copy_(part)
        for full, part in ((dB, dkeys), (dC, dqueries)):
            _per_group(full, *place).copy_(part)
        return after

    def _recalled(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the states say to each token, but for their decay since."""
        return (self.queries @ states).unflatten(4, (-1, self.head_dim))

    def _left(self, chunk: int) -> torch.Tensor:
        """Return what is left of a state after a chunk, as a factor of states side by side."""
        return self.carried[:, :, chunk].repeat_interleave(self.head_dim, 3)


def _laid_out(full: torch.Tensor, start: int, chunks: int, size: int, groups: int) -> torch.Tensor:
    """Return a view of some tokens of ``(batch, length, heads, …)`` as a tile has them."""
    part = full[:, start : start + chunks * size].unflatten(2, (groups, -1))
    return part.unflatten(1, (chunks, size)).movedim(3, 1)


def _per_group(full: torch.Tensor, start: int, chunks: int, size: int) -> torch.Tensor:
    """Return a view of some tokens of ``(batch, length, groups, d_state)`` as a tile has them."""
    part = full[:, start : start + chunks * size]
    return part.unflatten(1, (chunks, size)).movedim(3, 1)


def _scaled(tile: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply all channels of a token and head by one factor, into memory in one piece."""
    return torch.mul(tile, factors[..., None], out=factors.new_empty(tile.shape))


def _added_product(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ``to + a @ b``, in place, over any number of leading dimensions."""
    flat = to.flatten(0, -3)
    torch.baddbmm(flat, a.flatten(0, -3), b.flatten(0, -3), out=flat)
    return to
