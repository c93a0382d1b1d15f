"""What `kernels_gpu.py` measures: each operation on random operands, ours and its peers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hybridize import kernels

Work = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the operands; ``decoding`` is the batch size of operations on a single token."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    state: int
    groups: int
    hidden: int
    vocabulary: int
    decoding: int
    dtype: torch.dtype

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.state


@dataclass
class Case:
    """An operation on its operands.

    Attributes:
        inputs: the operands; gradients are computed for those that require them.
        works: the implementations by name, ours first: functions from the operands to the output.
        operations, bytes: the minimum of floating-point operations, and of bytes to move.
        differentiable: whether the operation has a gradient.
    """

    inputs: dict[str, torch.Tensor]
    works: dict[str, Work]
    operations: float
    bytes: float
    device: torch.device
    differentiable: bool = True


class _Draw:
    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self._dtype, self._device = sizes.dtype, device

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        made = torch.randn(*shape, device=self._device, dtype=dtype or self._dtype)
        return made.requires_grad_()


def _scan_operands(sizes: Sizes, device: torch.device, *lead: int) -> dict[str, torch.Tensor]:
    draw = _Draw(sizes, device)
    return {
        "x": draw(*lead, sizes.heads, sizes.head_dim),
        "dt": draw(*lead, sizes.heads),
        "A": (-torch.rand(sizes.heads, device=device) - 0.1).requires_grad_(),
        "B": draw(*lead, sizes.groups, sizes.state),
        "C": draw(*lead, sizes.groups, sizes.state),
        "D": draw(sizes.heads, dtype=torch.float32),
        "dt_bias": draw(sizes.heads, dtype=torch.float32),
    }


def ssd_scan(sizes: Sizes, device: torch.device) -> Case:
    inputs = _scan_operands(sizes, device, sizes.batch, sizes.tokens)

    def mamba_ssm(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        return scan.mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    def fla(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        gla = importlib.import_module("fla.ops.simple_gla")
        delta = F.softplus(dt.float() + dt_bias)
        B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (B, C))
        values = (x * delta[..., None]).to(x.dtype)
        y, _ = gla.chunk_simple_gla(C, B, values, delta * A, scale=1.0)
        return y + D.to(x.dtype)[:, None] * x

    works: dict[str, Work] = {"hybridize": lambda **given: kernels.ssd_scan(**given)[0]}
    works |= _available(mamba_ssm=mamba_ssm, fla=fla)
    # With chunks of Q = 64 tokens, a token takes 2·Q·(N·groups/heads + P) operations, half of them
    # masked, and 4·N·P for the state.
    within = 64 * (sizes.state * sizes.groups / sizes.heads + sizes.head_dim)
    each = sizes.heads * (within + 4 * sizes.state * sizes.head_dim)
    moved = _bytes(inputs) + inputs["x"].nbytes
    return Case(inputs, works, sizes.batch * sizes.tokens * each, moved, device)


def ssd_step(sizes: Sizes, device: torch.device) -> Case:
    inputs = _scan_operands(sizes, device, sizes.decoding)
    shape = (sizes.decoding, sizes.heads, sizes.head_dim, sizes.state)
    states = {name: torch.zeros(shape, device=device) for name in ("hybridize", "mamba_ssm")}

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.ssd_step(states["hybridize"], **given)

    def mamba_ssm(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
        heads, head_dim, state = x.shape[1], x.shape[2], B.shape[-1]
        return update.selective_state_update(
            states["mamba_ssm"],
            x,
            dt[..., None].expand(-1, -1, head_dim),
            A[:, None, None].expand(heads, head_dim, state),
            B,
            C,
            D=D[:, None].expand(heads, head_dim),
            dt_bias=dt_bias[:, None].expand(heads, head_dim),
            dt_softplus=True,
        )

    works = {"hybridize": ours, **_available(mamba_ssm=mamba_ssm)}
    state = states["hybridize"]
    moved = _bytes(inputs) + inputs["x"].nbytes + 2 * state.nbytes
    return Case(inputs, works, 5 * state.numel(), moved, device, differentiable=False)


def causal_conv1d(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    inputs = {
        "x": draw(sizes.batch, sizes.tokens, sizes.channels),
        "weight": draw(sizes.channels, 4),
        "bias": draw(sizes.channels),
    }

    def torch_conv1d(x, weight, bias):  # type: ignore[no-untyped-def]
        y = F.conv1d(x.mT, weight[:, None], bias, padding=3, groups=len(weight))
        return F.silu(y[..., : x.shape[1]]).mT

    def causal_conv1d(x, weight, bias):  # type: ignore[no-untyped-def]
        module = importlib.import_module("causal_conv1d")
        return module.causal_conv1d_fn(x.mT, weight, bias, activation="silu").mT

    works: dict[str, Work] = {"hybridize": lambda **given: kernels.causal_conv1d(**given)[0]}
    works |= {"torch": torch_conv1d, **_available(causal_conv1d=causal_conv1d)}
    moved = _bytes(inputs) + inputs["x"].nbytes
    return Case(inputs, works, 8 * inputs["x"].numel(), moved, device)


def gated_rms_norm(sizes: Sizes, device: torch.device) -> Case:
    draw, group = _Draw(sizes, device), sizes.inner // sizes.groups
    shape = (sizes.batch, sizes.tokens, sizes.inner)
    inputs = {"x": draw(*shape), "gate": draw(*shape), "weight": draw(sizes.inner)}

    def plain(x, gate, weight):  # type: ignore[no-untyped-def]
        wide = (x.float() * F.silu(gate.float())).unflatten(-1, (-1, group))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return weight * wide.flatten(-2).to(x.dtype)

    def mamba_ssm(x, gate, weight):  # type: ignore[no-untyped-def]
        gated = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
        return gated.rmsnorm_fn(
            x, weight, None, z=gate, eps=1e-5, group_size=group, norm_before_gate=False
        )

    works: dict[str, Work] = {
        "hybridize": lambda **given: kernels.gated_rms_norm(**given, eps=1e-5, group_size=group),
        "torch": plain,
        **_available(mamba_ssm=mamba_ssm),
    }
    moved = _bytes(inputs) + inputs["x"].nbytes
    return Case(inputs, works, 10 * inputs["x"].numel(), moved, device)


def rms_norm(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    inputs = {"x": draw(sizes.batch, sizes.tokens, sizes.hidden), "weight": draw(sizes.hidden)}
    works: dict[str, Work] = {
        "hybridize": lambda **given: kernels.rms_norm(**given, eps=1e-5),
        "torch": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5),
    }
    moved = _bytes(inputs) + inputs["x"].nbytes
    return Case(inputs, works, 4 * inputs["x"].numel(), moved, device)


def swiglu(sizes: Sizes, device: torch.device) -> Case:
    draw, shape = _Draw(sizes, device), (sizes.batch, sizes.tokens, sizes.inner)
    inputs = {"gate": draw(*shape), "up": draw(*shape)}
    works: dict[str, Work] = {
        "hybridize": kernels.swiglu,
        "torch": lambda gate, up: F.silu(gate) * up,
    }
    moved = _bytes(inputs) + inputs["up"].nbytes
    return Case(inputs, works, 5 * inputs["up"].numel(), moved, device)


def squared_relu(sizes: Sizes, device: torch.device) -> Case:
    inputs = {"x": _Draw(sizes, device)(sizes.batch, sizes.tokens, sizes.inner)}
    works: dict[str, Work] = {
        "hybridize": kernels.squared_relu,
        "torch": lambda x: F.relu(x).square(),
    }
    return Case(inputs, works, 2 * inputs["x"].numel(), 2 * _bytes(inputs), device)


def squared_relu_mlp(sizes: Sizes, device: torch.device) -> Case:
    draw, width, small = _Draw(sizes, device), 4 * sizes.hidden, sizes.hidden**-0.5
    inputs = {
        "x": draw(sizes.batch, sizes.tokens, sizes.hidden),
        "up": (draw(width, sizes.hidden).detach() * small).requires_grad_(),
        "down": (draw(sizes.hidden, width).detach() * small).requires_grad_(),
    }
    works: dict[str, Work] = {
        "hybridize": kernels.squared_relu_mlp,
        "torch": lambda x, up, down: F.linear(F.relu(F.linear(x, up)).square(), down),
    }
    moved = _bytes(inputs) + inputs["x"].nbytes
    return Case(inputs, works, 4 * inputs["x"].numel() * width, moved, device)


def mamba2_step(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    conv = {"conv_weight": draw(sizes.channels, 4), "conv_bias": draw(sizes.channels)}
    heads = {name: draw(sizes.heads, dtype=torch.float32) for name in ("A_log", "D", "dt_bias")}
    projected = draw(sizes.decoding, sizes.inner + sizes.channels + sizes.heads)
    inputs = {"projected": projected, **conv, **heads, "norm_weight": draw(sizes.inner)}
    shape = (sizes.decoding, sizes.heads, sizes.head_dim, sizes.state)
    group = sizes.inner // sizes.groups
    states = {
        name: (
            torch.zeros(sizes.decoding, sizes.channels, 3, device=device, dtype=sizes.dtype).mT,
            torch.zeros(shape, device=device),
        )  # conv_state and state, in the layout of the model's cache
        for name in ("hybridize", "separate")
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        conv_state, state = states["hybridize"]
        return kernels.mamba2_step(
            conv_state=conv_state, state=state, eps=1e-5, group_size=group, **given
        )

    def separate(projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight):  # type: ignore[no-untyped-def]
        conv_state, state = states["separate"]
        gate, mixed, dt = projected.split([sizes.inner, sizes.channels, sizes.heads], -1)
        mixed = kernels.causal_conv1d_step(mixed, conv_state, conv_weight, conv_bias)
        bc_width = sizes.groups * sizes.state
        x, B, C = mixed.split([sizes.inner, bc_width, bc_width], -1)
        B, C = (t.unflatten(-1, (sizes.groups, -1)) for t in (B, C))
        x = x.unflatten(-1, (sizes.heads, -1))
        y = kernels.ssd_step(state, x, dt, -A_log.exp(), B, C, D=D, dt_bias=dt_bias)
        return kernels.gated_rms_norm(y.flatten(1), gate, norm_weight, 1e-5, group_size=group)

    conv_state, state = states["hybridize"]
    moved = _bytes(inputs) + 2 * (state.nbytes + conv_state.nbytes)
    works: dict[str, Work] = {"hybridize": ours, "hybridize, op by op": separate}
    return Case(inputs, works, 5 * state.numel(), moved, device, differentiable=False)


def fp8_quantize(sizes: Sizes, device: torch.device) -> Case:
    inputs = {"x": _Draw(sizes, device)(sizes.batch * sizes.tokens, sizes.hidden)}

    def plain(x):  # type: ignore[no-untyped-def]
        scale = x.abs().amax(-1, keepdim=True).float() / 448
        return (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    works: dict[str, Work] = {
        "hybridize": lambda x: kernels.fp8_quantize(x, "row")[0],
        "torch": plain,
    }
    moved = _bytes(inputs) + inputs["x"].numel()
    return Case(inputs, works, 3 * inputs["x"].numel(), moved, device, differentiable=False)


def fp8_linear(sizes: Sizes, device: torch.device) -> Case:
    """Scales per row. Ours also quantizes the activations; torch's product gets them quantized."""
    return _fp8_linear(sizes, device, "row", "row")


def fp8_linear_per_block(sizes: Sizes, device: torch.device) -> Case:
    return _fp8_linear(sizes, device, "group", "block")


def _fp8_linear(sizes: Sizes, device: torch.device, activations: str, weights: str) -> Case:
    draw = _Draw(sizes, device)
    x = draw(sizes.batch * sizes.tokens, sizes.hidden).detach()
    wide = draw(4 * sizes.hidden, sizes.hidden).detach()
    weight, weight_scale = kernels.fp8_quantize(wide, weights)
    values, scale = kernels.fp8_quantize(x, activations)
    by_columns = scale.T.contiguous().T  # torch's layout for groups; the same for rows

    def scaled_mm(x):  # type: ignore[no-untyped-def]
        return torch._scaled_mm(
            values,
            weight.T,
            scale_a=by_columns,
            scale_b=weight_scale.T,
            out_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        )

    works: dict[str, Work] = {
        "hybridize": lambda x: kernels.fp8_linear(x, weight, weight_scale, activations=activations),
        "torch, product alone": scaled_mm,
        "torch, in the operands' dtype": lambda x: F.linear(x, wide),
    }
    # Half of the operations, because FP8 has twice the rate of the measured matrix product.
    operations = x.numel() * len(weight)
    moved = x.nbytes + weight.nbytes + x.shape[0] * len(weight) * x.element_size()
    return Case({"x": x}, works, operations, moved, device, differentiable=False)


def linear_kl_divergence(sizes: Sizes, device: torch.device) -> Case:
    draw, small = _Draw(sizes, device), sizes.hidden**-0.5
    heads = [(draw(sizes.vocabulary, sizes.hidden).detach() * small) for _ in range(2)]
    inputs = {
        "hidden": draw(sizes.tokens, sizes.hidden),
        "weight": heads[0].requires_grad_(),
        "target_hidden": draw(sizes.tokens, sizes.hidden).detach(),
        "target_weight": heads[1],
    }

    def unfused(hidden, weight, target_hidden, target_weight):  # type: ignore[no-untyped-def]
        teacher = (target_hidden @ target_weight.T).float().log_softmax(-1)
        student = (hidden @ weight.T).float().log_softmax(-1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    works: dict[str, Work] = {"hybridize": kernels.linear_kl_divergence, "torch": unfused}
    operations = 4 * sizes.tokens * sizes.vocabulary * sizes.hidden
    return Case(inputs, works, operations, _bytes(inputs), device)


OPERATIONS: dict[str, Callable[[Sizes, torch.device], Case]] = {
    operation.__name__: operation
    for operation in (
        ssd_scan,
        ssd_step,
        causal_conv1d,
        gated_rms_norm,
        rms_norm,
        mamba2_step,
        swiglu,
        squared_relu,
        squared_relu_mlp,
        fp8_quantize,
        fp8_linear,
        fp8_linear_per_block,
        linear_kl_divergence,
    )
}


def _available(**peers: Any) -> dict[str, Work]:
    """Return the peers whose packages are installed."""
    from importlib.util import find_spec

    return {name: work for name, work in peers.items() if find_spec(name) is not None}


def _bytes(inputs: dict[str, torch.Tensor]) -> float:
    return float(sum(tensor.nbytes for tensor in inputs.values()))
