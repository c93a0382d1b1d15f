"""The kernels of the SSD scan: forward, recomputation of the states, and gradients.

A program of the first two kernels loops over chunks. It keeps the state of one head, or some rows
of that state, in registers, in float32 or wider. A program of the third kernel has one chunk and
one group, and sums the gradients of B and C over the group's heads.

Strides: ``_t`` is the distance between two tokens in elements, ``_b`` the distance between two
sequences of the batch in tokens. Only ``_b`` depends on the length, so Triton must not specialize
on it; otherwise it would compile a kernel for each length.
"""

import triton
import triton.language as tl

from hybridize.kernels.triton.ssd_chunk import (
    decay_within,
    dt_grad,
    load_decays,
    load_dt,
    load_rows,
)


@triton.jit(do_not_specialize=["T", "x_b", "dt_b", "B_b", "C_b"])
def scan_forward(
    x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, y, last_state,
    x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, T, heads, heads_per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y and the last state: one program per sequence, head and block of the state's rows."""
    i_b, i_h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i_g = i_h // heads_per_group
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    o_n = tl.arange(0, BN)
    x += i_b * x_b * x_t + i_h * P
    y += (i_b * T * heads + i_h) * P
    dt += i_b * dt_b * dt_t + i_h
    B += i_b * B_b * B_t + i_g * N
    C += i_b * C_b * C_t + i_g * N
    if seq_idx is not None:
        seq_idx += i_b * T
    if dt_bias is not None:
        dt_bias += i_h
    o_state = (i_b * heads + i_h) * P * N + o_p[:, None] * N + o_n[None, :]
    m_state = (o_p < P)[:, None] & (o_n < N)[None, :]
    b_state = tl.zeros((BP, BN), ACC)
    if initial_state is not None:
        b_state += tl.load(initial_state + o_state, mask=m_state, other=0.0).to(ACC)
    for start in range(0, T, CHUNK):
        o_t = start + tl.arange(0, BT)
        m_t = (tl.arange(0, BT) < CHUNK) & (o_t < T)
        _, b_dt = load_dt(dt, dt_t, dt_bias, o_t, m_t, LOW, HIGH, ACC)
        b_log, b_seq, b_from_start, b_to_end, chunk_decay = load_decays(
            b_dt, A + i_h, seq_idx, start, o_t, m_t, T, CHUNK, ACC
        )
        o_t64 = o_t.to(tl.int64)
        b_x = load_rows(x, x_t, o_t64, m_t, o_p, P)
        b_B = load_rows(B, B_t, o_t64, m_t, o_n, N).to(DOT)
        b_C = load_rows(C, C_t, o_t64, m_t, o_n, N).to(DOT)
        b_weights = tl.dot(b_C, tl.trans(b_B), out_dtype=ACC, input_precision=PRECISION)
        b_weights *= decay_within(b_log, b_seq, seq_idx is not None) * b_dt[None, :]
        b_y_state = tl.dot(b_C, tl.trans(b_state).to(DOT), out_dtype=ACC, input_precision=PRECISION)
        b_y = b_from_start[:, None] * b_y_state
        b_y += tl.dot(b_weights.to(DOT), b_x.to(DOT), out_dtype=ACC, input_precision=PRECISION)
        if D is not None:
            b_y += tl.load(D + i_h).to(ACC) * b_x.to(ACC)
        p_y = y + o_t64[:, None] * (heads * P) + o_p[None, :]
        tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_t[:, None] & (o_p < P)[None, :])
        b_kept = (b_x.to(ACC) * (b_dt * b_to_end)[:, None]).to(DOT)
        b_added = tl.dot(tl.trans(b_kept), b_B, out_dtype=ACC, input_precision=PRECISION)
        b_state = chunk_decay * b_state + b_added
    tl.store(last_state + o_state, b_state, mask=m_state)


@triton.jit(do_not_specialize=["T", "chunks", "x_b", "dt_b", "B_b"])
def scan_states(
    x, dt, A, B, dt_bias, initial_state, seq_idx, states, last_state,
    x_b, x_t, dt_b, dt_t, B_b, B_t, T, chunks, heads, heads_per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BACKWARD: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the state before each chunk, and the last state.

    With ``BACKWARD``, write the gradients of the state after each chunk and of the initial state.
    Chunks then run from last to first. The caller passes dy as ``x``, C as ``B``, and the gradient
    of the last state as ``initial_state``.
    """
    i_b, i_h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    o_n = tl.arange(0, BN)
    x += i_b * x_b * x_t + i_h * P
    dt += i_b * dt_b * dt_t + i_h
    B += i_b * B_b * B_t + i_h // heads_per_group * N
    if seq_idx is not None:
        seq_idx += i_b * T
    if dt_bias is not None:
        dt_bias += i_h
    m_state = (o_p < P)[:, None] & (o_n < N)[None, :]
    o_pn = o_p[:, None] * N + o_n[None, :]
    o_state = (i_b * heads + i_h) * P * N + o_pn
    b_state = tl.zeros((BP, BN), ACC)
    if initial_state is not None:
        b_state += tl.load(initial_state + o_state, mask=m_state, other=0.0).to(ACC)
    for count in range(0, chunks):
        i_c = chunks - 1 - count if BACKWARD else count
        p_states = states + ((i_b * heads + i_h) * chunks + i_c) * P * N + o_pn
        tl.store(p_states, b_state.to(states.dtype.element_ty), mask=m_state)
        start = i_c * CHUNK
        o_t = start + tl.arange(0, BT)
        m_t = (tl.arange(0, BT) < CHUNK) & (o_t < T)
        _, b_dt = load_dt(dt, dt_t, dt_bias, o_t, m_t, LOW, HIGH, ACC)
        _, _, b_from_start, b_to_end, chunk_decay = load_decays(
            b_dt, A + i_h, seq_idx, start, o_t, m_t, T, CHUNK, ACC
        )
        b_factor = b_from_start if BACKWARD else b_dt * b_to_end
        o_t64 = o_t.to(tl.int64)
        b_x = load_rows(x, x_t, o_t64, m_t, o_p, P).to(ACC) * b_factor[:, None]
        b_B = load_rows(B, B_t, o_t64, m_t, o_n, N).to(DOT)
        b_added = tl.dot(tl.trans(b_x.to(DOT)), b_B, out_dtype=ACC, input_precision=PRECISION)
        b_state = chunk_decay * b_state + b_added
    tl.store(last_state + o_state, b_state, mask=m_state)


@triton.jit(do_not_specialize=["T", "chunks", "x_b", "dt_b", "B_b", "C_b", "dy_b"])
def scan_gradients(
    x, dt, A, B, C, D, dt_bias, seq_idx, dy, states, dstates, dx, ddt, dB, dC, sums,
    x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, dy_b, dy_t, T, chunks, heads, heads_per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one chunk, for the heads of one group.

    ``states`` are the states before the chunks, ``dstates`` the gradients of those after them.
    ``sums`` gets the chunk's gradients of A, dt_bias and D, ``(3, heads)``.

    L is the log decay summed up from the chunk's start, and G[to, from] is the gradient of the log
    decay between two tokens, L[to] - L[from]. So dL[t] is the sum of row t of G minus the sum of
    column t. Both sums have the same float32 terms, so terms that cancel do so exactly. The terms
    of the states before and after the chunk do not cancel, and are added separately.
    """
    i_c, i_b = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    i_g, groups = tl.program_id(1), tl.num_programs(1)
    start = i_c * CHUNK
    o_t = start + tl.arange(0, BT)
    m_t = (tl.arange(0, BT) < CHUNK) & (o_t < T)
    o_t64 = o_t.to(tl.int64)
    o_p, o_n = tl.arange(0, BP), tl.arange(0, BN)
    b_B = load_rows(B + i_b * B_b * B_t + i_g * N, B_t, o_t64, m_t, o_n, N)
    b_C = load_rows(C + i_b * C_b * C_t + i_g * N, C_t, o_t64, m_t, o_n, N)
    b_B, b_C = b_B.to(DOT), b_C.to(DOT)
    if seq_idx is not None:
        seq_idx += i_b * T
    b_CB = tl.dot(b_C, tl.trans(b_B), out_dtype=ACC, input_precision=PRECISION)
    b_dCB = tl.zeros((BT, BT), ACC)
    b_dB = tl.zeros((BT, BN), ACC)
    b_dC = tl.zeros((BT, BN), ACC)
    m_state = (o_p < P)[:, None] & (o_n < N)[None, :]
    m_x = m_t[:, None] & (o_p < P)[None, :]
    for i_group_head in range(0, heads_per_group):
        i_h = i_g * heads_per_group + i_group_head
        p_bias = dt_bias
        if dt_bias is not None:
            p_bias = dt_bias + i_h
        b_raw_dt, b_dt = load_dt(
            dt + i_b * dt_b * dt_t + i_h, dt_t, p_bias, o_t, m_t, LOW, HIGH, ACC
        )
        b_log, b_seq, b_from_start, b_to_end, chunk_decay = load_decays(
            b_dt, A + i_h, seq_idx, start, o_t, m_t, T, CHUNK, ACC
        )
        b_x = load_rows(x + i_b * x_b * x_t + i_h * P, x_t, o_t64, m_t, o_p, P).to(ACC)
        b_dy = load_rows(dy + i_b * dy_b * dy_t + i_h * P, dy_t, o_t64, m_t, o_p, P).to(ACC)
        o_state = ((i_b * heads + i_h) * chunks + i_c) * P * N + o_p[:, None] * N + o_n[None, :]
        b_state = tl.load(states + o_state, mask=m_state, other=0.0)
        b_dstate = tl.load(dstates + o_state, mask=m_state, other=0.0)
        b_v = b_x * b_dt[:, None]

        b_state, b_dstate = b_state.to(DOT), b_dstate.to(DOT)
        overlap = tl.sum(tl.sum(b_state.to(ACC) * b_dstate.to(ACC), 1), 0)

        # Terms from the state before the chunk, and to the state after it.
        b_y_state = tl.dot(b_C, tl.trans(b_state), out_dtype=ACC, input_precision=PRECISION)
        b_dy_start = b_dy * b_from_start[:, None]
        b_from_state = tl.sum(b_y_state * b_dy_start, 1)
        b_dC = tl.dot(b_dy_start.to(DOT), b_state, b_dC, out_dtype=ACC, input_precision=PRECISION)
        b_dv = b_to_end[:, None] * tl.dot(
            b_B, tl.trans(b_dstate), out_dtype=ACC, input_precision=PRECISION
        )
        b_to_state = tl.sum(b_v * b_dv, 1)
        b_v_end = (b_v * b_to_end[:, None]).to(DOT)
        b_dB = tl.dot(b_v_end, b_dstate, b_dB, out_dtype=ACC, input_precision=PRECISION)

        # Terms between tokens of the chunk.
        b_decay = decay_within(b_log, b_seq, seq_idx is not None)
        b_dweights = b_decay * tl.dot(
            b_dy.to(DOT), tl.trans(b_v.to(DOT)), out_dtype=ACC, input_precision=PRECISION
        )
        b_dCB += b_dweights
        b_pairs = b_dweights * b_CB
        b_dL = b_from_state + tl.sum(b_pairs, 1) - tl.sum(b_pairs, 0)
        b_weights = (b_CB * b_decay).to(DOT)
        b_dv += tl.dot(tl.trans(b_weights), b_dy.to(DOT), out_dtype=ACC, input_precision=PRECISION)

        # The log decay of a token is part of L for this token and all later ones.
        b_dlog = tl.cumsum(b_dL, 0, reverse=True) + tl.cumsum(b_to_state, 0) - b_to_state
        b_dlog += chunk_decay * overlap
        head_A = tl.load(A + i_h).to(ACC)
        b_ddt = tl.sum(b_x * b_dv, 1) + b_dlog * head_A
        b_dx = b_dv * b_dt[:, None]
        if D is not None:
            b_dx += b_dy * tl.load(D + i_h).to(ACC)
        o_th = (i_b * T + o_t64) * heads + i_h
        p_dx = dx + o_th[:, None] * P + o_p[None, :]
        tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=m_x)
        b_draw = b_ddt * dt_grad(b_raw_dt, m_t, LOW, HIGH)
        tl.store(ddt + o_th, b_draw.to(ddt.dtype.element_ty), mask=m_t)
        p_sums = sums + (i_b * chunks + i_c) * 3 * heads + i_h
        tl.store(p_sums, tl.sum(b_dlog * b_dt, 0))
        tl.store(p_sums + heads, tl.sum(b_draw, 0))
        tl.store(p_sums + 2 * heads, tl.sum(tl.sum(b_dy * b_x, 1), 0))

    b_dCB = b_dCB.to(DOT)
    b_dB += tl.dot(tl.trans(b_dCB), b_C, out_dtype=ACC, input_precision=PRECISION)
    b_dC += tl.dot(b_dCB, b_B, out_dtype=ACC, input_precision=PRECISION)
    o_tn = ((i_b * T + o_t64) * groups + i_g)[:, None] * N + o_n[None, :]
    m_tn = m_t[:, None] & (o_n < N)[None, :]
    tl.store(dB + o_tn, b_dB.to(dB.dtype.element_ty), mask=m_tn)
    tl.store(dC + o_tn, b_dC.to(dC.dtype.element_ty), mask=m_tn)
