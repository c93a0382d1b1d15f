"""Functions that the kernels of the SSD scan share: Δ, decays and operands of one head's chunk."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import clamp, sigmoid, softplus


@triton.jit
def load_dt(
    dt, dt_stride, dt_bias, o_t, m_t, LOW: tl.constexpr, HIGH: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return one head's raw dt with its bias, and Δ; 0 out of range. Both are ``(tokens,)``."""
    b_raw = tl.load(dt + o_t * dt_stride, mask=m_t, other=0.0).to(ACC)
    if dt_bias is not None:
        b_raw += tl.load(dt_bias).to(ACC)
    return b_raw, tl.where(m_t, clamp(softplus(b_raw), LOW, HIGH), 0.0)


@triton.jit
def dt_grad(b_raw, m_t, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Return the derivative of Δ with respect to the raw dt."""
    b_dt = softplus(b_raw)
    m_free = m_t & (clamp(b_dt, LOW, HIGH) == b_dt)
    return tl.where(m_free, sigmoid(b_raw), 0.0)


@triton.jit
def load_decays(
    b_dt, A, seq_idx, start, o_t, m_t, T, CHUNK: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return one head's decays in a chunk.

    Returns:
        b_log: log decay summed up from the chunk's start to each token, ``(tokens,)``.
        b_seq: the sequence of each token, ``(tokens,)``.
        b_from_start: decay from before the chunk to each token, ``(tokens,)``.
        b_to_end: decay from each token to the chunk's end, ``(tokens,)``.
        chunk_decay: decay from before the chunk to its end, a scalar.
    """
    b_log_decay = b_dt * tl.load(A).to(ACC)
    b_log = tl.cumsum(b_log_decay, 0)
    end = tl.sum(b_log_decay, 0)
    b_from_start, b_to_end, chunk_decay = tl.exp(b_log), tl.exp(end - b_log), tl.exp(end)
    b_seq = tl.zeros_like(o_t).to(tl.int32)
    if seq_idx is not None:
        b_seq = tl.load(seq_idx + o_t, mask=m_t, other=-1)
        before = tl.load(seq_idx + tl.maximum(start - 1, 0))
        last = tl.load(seq_idx + tl.minimum(start + CHUNK, T) - 1)
        b_from_start = tl.where(b_seq == before, b_from_start, 0.0)
        b_to_end = tl.where(b_seq == last, b_to_end, 0.0)
        chunk_decay = tl.where(last == before, chunk_decay, 0.0)
    return b_log, b_seq, b_from_start, b_to_end, chunk_decay


@triton.jit
def decay_within(b_log, b_seq, PACKED: tl.constexpr):
    """Return the decay from each token of a chunk to each later one, ``(to, from)``."""
    o_t = tl.arange(0, b_log.shape[0])
    m_seen = o_t[:, None] >= o_t[None, :]
    if PACKED:
        m_seen = m_seen & (b_seq[:, None] == b_seq[None, :])
    # Mask before `exp`: it could overflow for an earlier token.
    return tl.exp(tl.where(m_seen, b_log[:, None] - b_log[None, :], float("-inf")))


@triton.jit
def load_rows(p, stride, o_t, m_t, o_c, WIDTH: tl.constexpr):
    """Return ``(tokens, columns)`` of a tensor; zeros out of range."""
    mask = m_t[:, None] & (o_c < WIDTH)[None, :]
    return tl.load(p + o_t[:, None] * stride + o_c[None, :], mask=mask, other=0.0)
