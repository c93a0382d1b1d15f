"""The kernels of the norms: a tile has some rows of one group of channels."""

import triton
import triton.language as tl

from hybridize.kernels.triton.pointwise import silu, silu_slope


@triton.jit
def normalized(x, EPS: tl.constexpr, GROUP: tl.constexpr):
    """Return ``x`` at unit root mean square, and what it was multiplied by."""
    mean = tl.sum(x * x, 1) / GROUP
    scale = 1 / tl.sqrt(mean + tl.full((), EPS, x.dtype))
    return x * scale[:, None], scale


@triton.jit(do_not_specialize=["count"])
def norm_forward(
    x_ptr, gate_ptr, weight_ptr, y_ptr, x_row, gate_row, count, width,
    EPS: tl.constexpr, GROUP: tl.constexpr, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write some rows of one group, gated if there is a gate."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < count) & (channel < GROUP)
    column = tl.program_id(1) * GROUP + channel
    stored = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0)
    x = stored.to(ACC)
    factor = x
    if gate_ptr is not None:
        factor = silu(tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0).to(ACC))
        if not NORM_FIRST:
            x *= factor
    normal, _ = normalized(x, EPS, GROUP)
    weight = tl.load(weight_ptr + column, mask=channel < GROUP, other=0.0).to(ACC)
    # Rounded to the input's dtype before the weight, as every checkpoint's own code does.
    y = normal.to(stored.dtype).to(ACC) * weight
    if gate_ptr is not None and NORM_FIRST:
        y *= factor
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "tiles"])
def norm_backward(
    x_ptr, gate_ptr, weight_ptr, dy_ptr, dx_ptr, dgate_ptr, dweight_ptr,
    x_row, gate_row, dy_row, count, width, tiles,
    EPS: tl.constexpr, GROUP: tl.constexpr, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Write the gradients of some tiles, and their sum for the weight."""
    channel = tl.arange(0, BLOCK)[None, :]
    column = tl.program_id(1) * GROUP + channel
    weight = tl.load(weight_ptr + column, mask=channel < GROUP, other=0.0).to(ACC)
    dweight = tl.zeros((1, BLOCK), ACC)
    for tile in range(0, tiles):
        first = (tl.program_id(0) * tiles + tile).to(tl.int64) * ROWS
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < count) & (channel < GROUP)
        x = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0).to(ACC)
        dy = tl.load(dy_ptr + row * dy_row + column, mask=inside, other=0.0).to(ACC)
        inner, gate, factor = x, x, x
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0).to(ACC)
            factor = silu(gate)
            if not NORM_FIRST:
                inner = x * factor
        normal, scale = normalized(inner, EPS, GROUP)
        dfactor = dy
        if gate_ptr is not None and NORM_FIRST:
            dfactor = dy * normal * weight
            dy *= factor
        dweight += tl.sum(dy * normal, 0)[None, :]
        dnormal = dy * weight
        # Zhang & Sennrich 2019, equation 9.
        mean = tl.sum(dnormal * normal, 1) / GROUP
        dinner = scale[:, None] * (dnormal - normal * mean[:, None])
        place = row * width + column
        if gate_ptr is not None:
            if not NORM_FIRST:
                dfactor = dinner * x
                dinner *= factor
            dgate = dfactor * silu_slope(gate)
            tl.store(dgate_ptr + place, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
        tl.store(dx_ptr + place, dinner.to(dx_ptr.dtype.element_ty), mask=inside)
    place = dweight_ptr + tl.program_id(0) * width + column
    tl.store(place, dweight, mask=channel < GROUP)
