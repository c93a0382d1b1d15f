"""The kernels of the scan: its forward, the walk that finds states again, and its gradients.

Programs of the first two go from chunk to chunk with one head's state, or a part of its rows, in
registers: it is float32 throughout, and never in memory. Programs of the third have a chunk and
a group each, and add up what the group's heads ask of B and C.

Strides: ``_t`` from token to token in elements, ``_b`` from one row of the batch to the next in
tokens. The latter alone depend on the length, and Triton must not compile a kernel for each.
"""

import triton
import triton.language as tl

from hybridize.kernels.triton.ssd_chunk import (
    decay_between,
    load_decays,
    load_rows,
    load_steps,
    step_slope,
)


@triton.jit(do_not_specialize=["length", "x_b", "dt_b", "B_b", "C_b"])
def scan_forward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, initial_ptr, seq_ptr, y_ptr, last_ptr,
    x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, length, heads, per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y and the last state: one program per batch row, head and block of the state's rows."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    group = head // per_group
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    x_ptr += batch * x_b * x_t + head * P
    y_ptr += (batch * length * heads + head) * P
    dt_ptr += batch * dt_b * dt_t + head
    B_ptr += batch * B_b * B_t + group * N
    C_ptr += batch * C_b * C_t + group * N
    if seq_ptr is not None:
        seq_ptr += batch * length
    if bias_ptr is not None:
        bias_ptr += head
    place = (batch * heads + head) * P * N + p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    state = tl.zeros((BLOCK_P, BLOCK_N), ACC)
    if initial_ptr is not None:
        state += tl.load(initial_ptr + place, mask=inside, other=0.0).to(ACC)
    for start in range(0, length, CHUNK):
        token = start + tl.arange(0, BLOCK_Q)
        valid = (tl.arange(0, BLOCK_Q) < CHUNK) & (token < length)
        _, step = load_steps(dt_ptr, dt_t, bias_ptr, token, valid, LOW, HIGH, ACC)
        total, index, into, out, through = load_decays(
            step, A_ptr + head, seq_ptr, start, token, valid, length, CHUNK, ACC
        )
        at = token.to(tl.int64)
        x = load_rows(x_ptr, x_t, at, valid, p, P)
        keys = load_rows(B_ptr, B_t, at, valid, n, N).to(DOT)
        queries = load_rows(C_ptr, C_t, at, valid, n, N).to(DOT)
        weights = tl.dot(queries, tl.trans(keys), out_dtype=ACC, input_precision=PRECISION)
        weights *= decay_between(total, index, seq_ptr is not None) * step[None, :]
        carried = tl.dot(queries, tl.trans(state).to(DOT), out_dtype=ACC, input_precision=PRECISION)
        y = into[:, None] * carried
        y += tl.dot(weights.to(DOT), x.to(DOT), out_dtype=ACC, input_precision=PRECISION)
        if D_ptr is not None:
            y += tl.load(D_ptr + head).to(ACC) * x.to(ACC)
        target = y_ptr + at[:, None] * (heads * P) + p[None, :]
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=valid[:, None] & (p < P)[None, :])
        kept = (x.to(ACC) * (step * out)[:, None]).to(DOT)
        added = tl.dot(tl.trans(kept), keys, out_dtype=ACC, input_precision=PRECISION)
        state = through * state + added
    tl.store(last_ptr + place, state, mask=inside)


@triton.jit(do_not_specialize=["length", "chunks", "value_b", "dt_b", "key_b"])
def scan_states(
    value_ptr, dt_ptr, A_ptr, key_ptr, bias_ptr, initial_ptr, seq_ptr, states_ptr, last_ptr,
    value_b, value_t, dt_b, dt_t, key_b, key_t, length, chunks, heads, per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BACKWARD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the state that every chunk begins with, and the last one.

    Backward, from the last chunk to the first, with dy for values and C for keys, these are the
    gradients of the states after the chunks.
    """
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    value_ptr += batch * value_b * value_t + head * P
    dt_ptr += batch * dt_b * dt_t + head
    key_ptr += batch * key_b * key_t + head // per_group * N
    if seq_ptr is not None:
        seq_ptr += batch * length
    if bias_ptr is not None:
        bias_ptr += head
    inside = (p < P)[:, None] & (n < N)[None, :]
    cell = p[:, None] * N + n[None, :]
    place = (batch * heads + head) * P * N + cell
    state = tl.zeros((BLOCK_P, BLOCK_N), ACC)
    if initial_ptr is not None:
        state += tl.load(initial_ptr + place, mask=inside, other=0.0).to(ACC)
    for count in range(0, chunks):
        chunk = chunks - 1 - count if BACKWARD else count
        saved = states_ptr + ((batch * heads + head) * chunks + chunk) * P * N + cell
        tl.store(saved, state.to(states_ptr.dtype.element_ty), mask=inside)
        start = chunk * CHUNK
        token = start + tl.arange(0, BLOCK_Q)
        valid = (tl.arange(0, BLOCK_Q) < CHUNK) & (token < length)
        _, step = load_steps(dt_ptr, dt_t, bias_ptr, token, valid, LOW, HIGH, ACC)
        _, _, into, out, through = load_decays(
            step, A_ptr + head, seq_ptr, start, token, valid, length, CHUNK, ACC
        )
        factor = into if BACKWARD else step * out
        at = token.to(tl.int64)
        values = load_rows(value_ptr, value_t, at, valid, p, P).to(ACC) * factor[:, None]
        keys = load_rows(key_ptr, key_t, at, valid, n, N).to(DOT)
        added = tl.dot(tl.trans(values.to(DOT)), keys, out_dtype=ACC, input_precision=PRECISION)
        state = through * state + added
    tl.store(last_ptr + place, state, mask=inside)


@triton.jit(do_not_specialize=["length", "chunks", "x_b", "dt_b", "B_b", "C_b", "dy_b"])
def scan_gradients(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, seq_ptr, dy_ptr, before_ptr, after_ptr,
    dx_ptr, ddt_ptr, dB_ptr, dC_ptr, sums_ptr,
    x_b, x_t, dt_b, dt_t, B_b, B_t, C_b, C_t, dy_b, dy_t, length, chunks, heads, per_group,
    P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a chunk, for the heads of one group.

    With T the log decays summed from the chunk's start and G[to, from] a pair's share of the loss,
    dT[t] is G's row minus its column. Both sums are of the same numbers in float32, so that what
    must cancel does; what goes in from the state before, and out to the one after, has sums of its
    own and cancels nothing.
    """
    chunk, batch = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    group, groups = tl.program_id(1), tl.num_programs(1)
    start = chunk * CHUNK
    token = start + tl.arange(0, BLOCK_Q)
    valid = (tl.arange(0, BLOCK_Q) < CHUNK) & (token < length)
    at = token.to(tl.int64)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    keys = load_rows(B_ptr + batch * B_b * B_t + group * N, B_t, at, valid, n, N)
    queries = load_rows(C_ptr + batch * C_b * C_t + group * N, C_t, at, valid, n, N)
    keys, queries = keys.to(DOT), queries.to(DOT)
    if seq_ptr is not None:
        seq_ptr += batch * length
    products = tl.dot(queries, tl.trans(keys), out_dtype=ACC, input_precision=PRECISION)
    dproducts = tl.zeros((BLOCK_Q, BLOCK_Q), ACC)
    dkeys = tl.zeros((BLOCK_Q, BLOCK_N), ACC)
    dqueries = tl.zeros((BLOCK_Q, BLOCK_N), ACC)
    inside = (p < P)[:, None] & (n < N)[None, :]
    seen = valid[:, None] & (p < P)[None, :]
    for nth in range(0, per_group):
        head = group * per_group + nth
        bias = bias_ptr
        if bias_ptr is not None:
            bias = bias_ptr + head
        raw, step = load_steps(
            dt_ptr + batch * dt_b * dt_t + head, dt_t, bias, token, valid, LOW, HIGH, ACC
        )
        total, index, into, out, through = load_decays(
            step, A_ptr + head, seq_ptr, start, token, valid, length, CHUNK, ACC
        )
        x = load_rows(x_ptr + batch * x_b * x_t + head * P, x_t, at, valid, p, P).to(ACC)
        dy = load_rows(dy_ptr + batch * dy_b * dy_t + head * P, dy_t, at, valid, p, P).to(ACC)
        cell = ((batch * heads + head) * chunks + chunk) * P * N + p[:, None] * N + n[None, :]
        before = tl.load(before_ptr + cell, mask=inside, other=0.0)
        after = tl.load(after_ptr + cell, mask=inside, other=0.0)
        values = x * step[:, None]

        before, after = before.to(DOT), after.to(DOT)
        overlap = tl.sum(tl.sum(before.to(ACC) * after.to(ACC), 1), 0)

        # To and from the states outside of the chunk.
        carried = tl.dot(queries, tl.trans(before), out_dtype=ACC, input_precision=PRECISION)
        faded = dy * into[:, None]
        entering = tl.sum(carried * faded, 1)
        dqueries = tl.dot(faded.to(DOT), before, dqueries, out_dtype=ACC, input_precision=PRECISION)
        dvalues = out[:, None] * tl.dot(
            keys, tl.trans(after), out_dtype=ACC, input_precision=PRECISION
        )
        leaving = tl.sum(values * dvalues, 1)
        kept = (values * out[:, None]).to(DOT)
        dkeys = tl.dot(kept, after, dkeys, out_dtype=ACC, input_precision=PRECISION)

        # Among the chunk's own tokens.
        between = decay_between(total, index, seq_ptr is not None)
        along = between * tl.dot(
            dy.to(DOT), tl.trans(values.to(DOT)), out_dtype=ACC, input_precision=PRECISION
        )
        dproducts += along
        pairs = along * products
        rising = entering + tl.sum(pairs, 1) - tl.sum(pairs, 0)
        weights = (products * between).to(DOT)
        dvalues += tl.dot(tl.trans(weights), dy.to(DOT), out_dtype=ACC, input_precision=PRECISION)

        # The log decay of a token is in all sums from it on.
        dlog = tl.cumsum(rising, 0, reverse=True) + tl.cumsum(leaving, 0) - leaving
        dlog += through * overlap
        A = tl.load(A_ptr + head).to(ACC)
        dstep = tl.sum(x * dvalues, 1) + dlog * A
        dx = dvalues * step[:, None]
        if D_ptr is not None:
            dx += dy * tl.load(D_ptr + head).to(ACC)
        where = ((batch * length + at) * heads + head)[:, None] * P + p[None, :]
        tl.store(dx_ptr + where, dx.to(dx_ptr.dtype.element_ty), mask=seen)
        draw = dstep * step_slope(raw, valid, LOW, HIGH)
        place = (batch * length + at) * heads + head
        tl.store(ddt_ptr + place, draw.to(ddt_ptr.dtype.element_ty), mask=valid)
        sums = sums_ptr + (batch * chunks + chunk) * 3 * heads + head
        tl.store(sums, tl.sum(dlog * step, 0))
        tl.store(sums + heads, tl.sum(draw, 0))
        tl.store(sums + 2 * heads, tl.sum(tl.sum(dy * x, 1), 0))

    dproducts = dproducts.to(DOT)
    dkeys += tl.dot(tl.trans(dproducts), queries, out_dtype=ACC, input_precision=PRECISION)
    dqueries += tl.dot(dproducts, keys, out_dtype=ACC, input_precision=PRECISION)
    where = ((batch * length + at) * groups + group)[:, None] * N + n[None, :]
    seen = valid[:, None] & (n < N)[None, :]
    tl.store(dB_ptr + where, dkeys.to(dB_ptr.dtype.element_ty), mask=seen)
    tl.store(dC_ptr + where, dqueries.to(dC_ptr.dtype.element_ty), mask=seen)
