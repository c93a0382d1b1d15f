"""What the kernels of the scan do alike: steps, decays and states of one head's chunk."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import sigmoid, softplus


@triton.jit
def clamped(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Return ``x`` within bounds; constants, as arguments would be rounded to float32."""
    return tl.minimum(tl.maximum(x, tl.full((), LOW, x.dtype)), tl.full((), HIGH, x.dtype))


@triton.jit
def load_steps(
    dt_ptr, dt_stride, bias_ptr, token, valid,
    LOW: tl.constexpr, HIGH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return one head's raw steps with their bias, and the positive ones; 0 out of range."""
    raw = tl.load(dt_ptr + token * dt_stride, mask=valid, other=0.0).to(ACC)
    if bias_ptr is not None:
        raw += tl.load(bias_ptr).to(ACC)
    return raw, tl.where(valid, clamped(softplus(raw), LOW, HIGH), 0.0)


@triton.jit
def step_slope(raw, valid, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Return the derivative of the positive steps by the raw ones."""
    step = softplus(raw)
    free = valid & (clamped(step, LOW, HIGH) == step)
    return tl.where(free, sigmoid(raw), 0.0)


@triton.jit
def load_decays(
    step, A_ptr, seq_ptr, start, token, valid, length, CHUNK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return what one head's decays are made of, and those into, out of and through the chunk.

    Returns:
        The summed log decays from the chunk's start and the tokens' sequences, ``(tokens,)``;
        what is left of the state before the chunk at each token, ``(tokens,)``; of each token at
        the chunk's end, ``(tokens,)``; and of the state before the chunk at its end, a scalar.
    """
    log_decay = step * tl.load(A_ptr).to(ACC)
    total = tl.cumsum(log_decay, 0)
    end = tl.sum(log_decay, 0)
    into, out, through = tl.exp(total), tl.exp(end - total), tl.exp(end)
    index = tl.zeros_like(token).to(tl.int32)
    if seq_ptr is not None:
        index = tl.load(seq_ptr + token, mask=valid, other=-1)
        before = tl.load(seq_ptr + tl.maximum(start - 1, 0))
        last = tl.load(seq_ptr + tl.minimum(start + CHUNK, length) - 1)
        into = tl.where(index == before, into, 0.0)
        out = tl.where(index == last, out, 0.0)
        through = tl.where(last == before, through, 0.0)
    return total, index, into, out, through


@triton.jit
def decay_between(total, index, PACKED: tl.constexpr):
    """Return what is left at one token of what another put in, ``(to, from)``."""
    order = tl.arange(0, total.shape[0])
    seen = order[:, None] >= order[None, :]
    if PACKED:
        seen = seen & (index[:, None] == index[None, :])
    # Only differences of one chunk's sums are taken, and none that would be above one.
    return tl.exp(tl.where(seen, total[:, None] - total[None, :], float("-inf")))


@triton.jit
def load_rows(ptr, stride, token, valid, column, WIDTH: tl.constexpr):
    """Return ``(tokens, columns)`` of a tensor, zeros out of range."""
    mask = valid[:, None] & (column < WIDTH)[None, :]
    return tl.load(ptr + token[:, None] * stride + column[None, :], mask=mask, other=0.0)
