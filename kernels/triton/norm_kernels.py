"""The kernels of the norms: a block has some rows of one group of channels."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_grad


@triton.jit
def normalize(b_x, EPS: tl.constexpr, GROUP: tl.constexpr):
    """Return the rows scaled to unit root mean square, and their scales."""
    b_mean = tl.sum(b_x * b_x, 1) / GROUP
    b_scale = 1 / tl.sqrt(b_mean + tl.full((), EPS, b_x.dtype))
    return b_x * b_scale[:, None], b_scale


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x, gate, weight, y, x_stride, gate_stride, rows, width,
    EPS: tl.constexpr, GROUP: tl.constexpr, NORM_FIRST: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write some rows of one group, gated if there is a gate."""
    o_r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
    o_c = tl.arange(0, BC)[None, :]
    m_c = o_c < GROUP
    m_rc = (o_r < rows) & m_c
    o_c += tl.program_id(1) * GROUP
    b_stored = tl.load(x + o_r * x_stride + o_c, mask=m_rc, other=0.0)
    b_x = b_stored.to(ACC)
    b_silu = b_x
    if gate is not None:
        b_silu = silu(tl.load(gate + o_r * gate_stride + o_c, mask=m_rc, other=0.0).to(ACC))
        if not NORM_FIRST:
            b_x *= b_silu
    b_norm, _ = normalize(b_x, EPS, GROUP)
    b_weight = tl.load(weight + o_c, mask=m_c, other=0.0).to(ACC)
    # Round to the input's dtype before multiplying by the weight, as transformers' models do.
    b_y = b_norm.to(b_stored.dtype).to(ACC) * b_weight
    if gate is not None and NORM_FIRST:
        b_y *= b_silu
    tl.store(y + o_r * width + o_c, b_y.to(y.dtype.element_ty), mask=m_rc)


@triton.jit(do_not_specialize=["rows", "blocks"])
def norm_backward(
    x, gate, weight, dy, dx, dgate, dweight,
    x_stride, gate_stride, dy_stride, rows, width, blocks,
    EPS: tl.constexpr, GROUP: tl.constexpr, NORM_FIRST: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ``blocks`` blocks of rows; ``dweight`` gets its sum over them."""
    o_c = tl.arange(0, BC)[None, :]
    m_c = o_c < GROUP
    o_c += tl.program_id(1) * GROUP
    b_weight = tl.load(weight + o_c, mask=m_c, other=0.0).to(ACC)
    b_dweight = tl.zeros((1, BC), ACC)
    for i_block in range(0, blocks):
        o_r = (tl.program_id(0) * blocks + i_block).to(tl.int64) * BR
        o_r = o_r + tl.arange(0, BR)[:, None]
        m_rc = (o_r < rows) & m_c
        b_x = tl.load(x + o_r * x_stride + o_c, mask=m_rc, other=0.0).to(ACC)
        b_dy = tl.load(dy + o_r * dy_stride + o_c, mask=m_rc, other=0.0).to(ACC)
        b_inner, b_gate, b_silu = b_x, b_x, b_x
        if gate is not None:
            b_gate = tl.load(gate + o_r * gate_stride + o_c, mask=m_rc, other=0.0).to(ACC)
            b_silu = silu(b_gate)
            if not NORM_FIRST:
                b_inner = b_x * b_silu
        b_norm, b_scale = normalize(b_inner, EPS, GROUP)
        b_dsilu = b_dy
        if gate is not None and NORM_FIRST:
            b_dsilu = b_dy * b_norm * b_weight
            b_dy *= b_silu
        b_dweight += tl.sum(b_dy * b_norm, 0)[None, :]
        b_dnorm = b_dy * b_weight
        # Zhang & Sennrich 2019, equation 9.
        b_mean = tl.sum(b_dnorm * b_norm, 1) / GROUP
        b_dinner = b_scale[:, None] * (b_dnorm - b_norm * b_mean[:, None])
        o_out = o_r * width + o_c
        if gate is not None:
            if not NORM_FIRST:
                b_dsilu = b_dinner * b_x
                b_dinner *= b_silu
            b_dgate = b_dsilu * silu_grad(b_gate)
            tl.store(dgate + o_out, b_dgate.to(dgate.dtype.element_ty), mask=m_rc)
        tl.store(dx + o_out, b_dinner.to(dx.dtype.element_ty), mask=m_rc)
    tl.store(dweight + tl.program_id(0) * width + o_c, b_dweight, mask=m_c)
