"""The operations that `kernels_gpu.py` measures: random operands, our implementation, its peers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from kernels_peers import (
    Case,
    Implementation,
    causal_conv1d_package,
    installed,
    mamba_ssm_scan,
    torch_conv1d,
    torch_gated_rms_norm,
    torch_kl_divergence,
    torch_squared_relu_mlp,
    total_bytes,
)

from hybridize import kernels


@dataclass(frozen=True)
class Sizes:
    """Sizes of the operands; ``decoding_batch`` is for operations on one token per sequence."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    d_state: int
    groups: int
    hidden: int
    vocabulary: int
    decoding_batch: int
    dtype: torch.dtype

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.d_state


class _Draw:
    """Draws random tensors that require a gradient."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self._dtype, self._device = sizes.dtype, device

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        drawn = torch.randn(*shape, device=self._device, dtype=dtype or self._dtype)
        return drawn.requires_grad_()


def _scan_operands(sizes: Sizes, device: torch.device, *leading: int) -> dict[str, torch.Tensor]:
    """Return operands of the scan or of a step; ``leading`` are the dimensions before the heads."""
    draw = _Draw(sizes, device)
    return {
        "x": draw(*leading, sizes.heads, sizes.head_dim),
        "dt": draw(*leading, sizes.heads),
        "A": (-torch.rand(sizes.heads, device=device) - 0.1).requires_grad_(),
        "B": draw(*leading, sizes.groups, sizes.d_state),
        "C": draw(*leading, sizes.groups, sizes.d_state),
        "D": draw(sizes.heads, dtype=torch.float32),
        "dt_bias": draw(sizes.heads, dtype=torch.float32),
    }


def ssd_scan(sizes: Sizes, device: torch.device) -> Case:
    inputs = _scan_operands(sizes, device, sizes.batch, sizes.tokens)

    def fla(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        gla = importlib.import_module("fla.ops.simple_gla")
        delta = F.softplus(dt.float() + dt_bias)
        B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (B, C))
        values = (x * delta[..., None]).to(x.dtype)
        y, _ = gla.chunk_simple_gla(C, B, values, delta * A, scale=1.0)
        return y + D.to(x.dtype)[:, None] * x

    implementations: dict[str, Implementation] = {
        "hybridize": lambda **given: kernels.ssd_scan(**given)[0],
        **installed(mamba_ssm=mamba_ssm_scan, fla=fla),
    }
    # In chunks of Q = 64 tokens, a token takes 2·Q·(N·groups/heads + P) operations per head within
    # the chunk, half of them masked, and 4·N·P for the state.
    within_chunk = 64 * (sizes.d_state * sizes.groups / sizes.heads + sizes.head_dim)
    per_token = sizes.heads * (within_chunk + 4 * sizes.d_state * sizes.head_dim)
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, sizes.batch * sizes.tokens * per_token, moved)


def ssd_step(sizes: Sizes, device: torch.device) -> Case:
    inputs = _scan_operands(sizes, device, sizes.decoding_batch)
    shape = (sizes.decoding_batch, sizes.heads, sizes.head_dim, sizes.d_state)
    states = {name: torch.zeros(shape, device=device) for name in ("hybridize", "mamba_ssm")}

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.ssd_step(states["hybridize"], **given)

    def mamba_ssm(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
        heads, head_dim, d_state = x.shape[1], x.shape[2], B.shape[-1]
        return update.selective_state_update(
            states["mamba_ssm"],
            x,
            dt[..., None].expand(-1, -1, head_dim),
            A[:, None, None].expand(heads, head_dim, d_state),
            B,
            C,
            D=D[:, None].expand(heads, head_dim),
            dt_bias=dt_bias[:, None].expand(heads, head_dim),
            dt_softplus=True,
        )

    implementations = {"hybridize": ours, **installed(mamba_ssm=mamba_ssm)}
    state = states["hybridize"]
    moved = total_bytes(inputs, inputs["x"], state, state)
    return Case(inputs, implementations, 5 * state.numel(), moved, differentiable=False)


def causal_conv1d(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    inputs = {
        "x": draw(sizes.batch, sizes.tokens, sizes.channels),
        "weight": draw(sizes.channels, 4),
        "bias": draw(sizes.channels),
    }

    implementations: dict[str, Implementation] = {
        "hybridize": lambda **given: kernels.causal_conv1d(**given)[0],
        "torch": torch_conv1d,
        **installed(causal_conv1d=causal_conv1d_package),
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 8 * inputs["x"].numel(), moved)


def gated_rms_norm(sizes: Sizes, device: torch.device) -> Case:
    draw, group = _Draw(sizes, device), sizes.inner // sizes.groups
    shape = (sizes.batch, sizes.tokens, sizes.inner)
    inputs = {"x": draw(*shape), "gate": draw(*shape), "weight": draw(sizes.inner)}

    def mamba_ssm(x, gate, weight):  # type: ignore[no-untyped-def]
        gated = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
        return gated.rmsnorm_fn(
            x, weight, None, z=gate, eps=1e-5, group_size=group, norm_before_gate=False
        )

    implementations: dict[str, Implementation] = {
        "hybridize": lambda **given: kernels.gated_rms_norm(**given, eps=1e-5, group_size=group),
        "torch": partial(torch_gated_rms_norm, group_size=group),
        **installed(mamba_ssm=mamba_ssm),
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 10 * inputs["x"].numel(), moved)


def rms_norm(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    inputs = {"x": draw(sizes.batch, sizes.tokens, sizes.hidden), "weight": draw(sizes.hidden)}
    implementations: dict[str, Implementation] = {
        "hybridize": lambda **given: kernels.rms_norm(**given, eps=1e-5),
        "torch": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5),
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 4 * inputs["x"].numel(), moved)


def swiglu(sizes: Sizes, device: torch.device) -> Case:
    draw, shape = _Draw(sizes, device), (sizes.batch, sizes.tokens, sizes.inner)
    inputs = {"gate": draw(*shape), "up": draw(*shape)}
    implementations: dict[str, Implementation] = {
        "hybridize": kernels.swiglu,
        "torch": lambda gate, up: F.silu(gate) * up,
    }
    moved = total_bytes(inputs, inputs["up"])
    return Case(inputs, implementations, 5 * inputs["up"].numel(), moved)


def squared_relu(sizes: Sizes, device: torch.device) -> Case:
    inputs = {"x": _Draw(sizes, device)(sizes.batch, sizes.tokens, sizes.inner)}
    implementations: dict[str, Implementation] = {
        "hybridize": kernels.squared_relu,
        "torch": lambda x: F.relu(x).square(),
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 2 * inputs["x"].numel(), moved)


def squared_relu_mlp(sizes: Sizes, device: torch.device) -> Case:
    draw, width, scale = _Draw(sizes, device), 4 * sizes.hidden, sizes.hidden**-0.5
    inputs = {
        "x": draw(sizes.batch, sizes.tokens, sizes.hidden),
        "up": (draw(width, sizes.hidden).detach() * scale).requires_grad_(),
        "down": (draw(sizes.hidden, width).detach() * scale).requires_grad_(),
    }
    implementations: dict[str, Implementation] = {
        "hybridize": kernels.squared_relu_mlp,
        "torch": torch_squared_relu_mlp,
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 4 * inputs["x"].numel() * width, moved)


def mamba2_step(sizes: Sizes, device: torch.device) -> Case:
    draw = _Draw(sizes, device)
    conv = {"conv_weight": draw(sizes.channels, 4), "conv_bias": draw(sizes.channels)}
    heads = {name: draw(sizes.heads, dtype=torch.float32) for name in ("A_log", "D", "dt_bias")}
    projected = draw(sizes.decoding_batch, sizes.inner + sizes.channels + sizes.heads)
    inputs = {"projected": projected, **conv, **heads, "norm_weight": draw(sizes.inner)}
    batch = sizes.decoding_batch
    shape = (batch, sizes.heads, sizes.head_dim, sizes.d_state)
    group = sizes.inner // sizes.groups
    states = {
        name: (
            torch.zeros(batch, sizes.channels, 3, device=device, dtype=sizes.dtype).mT,
            torch.zeros(shape, device=device),
        )  # conv_state and state, with the strides that they have in the model's cache
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
        bc_width = sizes.groups * sizes.d_state
        x, B, C = mixed.split([sizes.inner, bc_width, bc_width], -1)
        B, C = (t.unflatten(-1, (sizes.groups, -1)) for t in (B, C))
        x = x.unflatten(-1, (sizes.heads, -1))
        y = kernels.ssd_step(state, x, dt, -A_log.exp(), B, C, D=D, dt_bias=dt_bias)
        return kernels.gated_rms_norm(y.flatten(1), gate, norm_weight, 1e-5, group_size=group)

    conv_state, state = states["hybridize"]
    moved = total_bytes(inputs, state, state, conv_state, conv_state)
    implementations: dict[str, Implementation] = {
        "hybridize": ours,
        "hybridize, op by op": separate,
    }
    return Case(inputs, implementations, 5 * state.numel(), moved, differentiable=False)


def fp8_quantize(sizes: Sizes, device: torch.device) -> Case:
    inputs = {"x": _Draw(sizes, device)(sizes.batch * sizes.tokens, sizes.hidden)}

    def torch_fp8_quantize(x):  # type: ignore[no-untyped-def]
        scale = x.abs().amax(-1, keepdim=True).float() / 448
        return (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    implementations: dict[str, Implementation] = {
        "hybridize": lambda x: kernels.fp8_quantize(x, "row")[0],
        "torch": torch_fp8_quantize,
    }
    moved = total_bytes(inputs) + inputs["x"].numel()  # one byte per FP8 number
    return Case(inputs, implementations, 3 * inputs["x"].numel(), moved, differentiable=False)


def fp8_linear(sizes: Sizes, device: torch.device) -> Case:
    """Scales per row. Ours also quantizes the activations; torch's product takes them quantized."""
    return _fp8_linear(sizes, device, "row", "row")


def fp8_linear_per_block(sizes: Sizes, device: torch.device) -> Case:
    return _fp8_linear(sizes, device, "group", "block")


def _fp8_linear(sizes: Sizes, device: torch.device, activations: str, weights: str) -> Case:
    draw = _Draw(sizes, device)
    x = draw(sizes.batch * sizes.tokens, sizes.hidden).detach()
    full_weight = draw(4 * sizes.hidden, sizes.hidden).detach()
    weight, weight_scale = kernels.fp8_quantize(full_weight, weights)
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

    implementations: dict[str, Implementation] = {
        "hybridize": lambda x: kernels.fp8_linear(x, weight, weight_scale, activations=activations),
        "torch, product alone": scaled_mm,
        "torch, in the operands' dtype": lambda x: F.linear(x, full_weight),
    }
    # Half of the operations, because FP8 has twice the rate of the measured matrix product.
    operations = x.numel() * len(weight)
    moved = x.nbytes + weight.nbytes + x.shape[0] * len(weight) * x.element_size()
    return Case({"x": x}, implementations, operations, moved, differentiable=False)


def linear_kl_divergence(sizes: Sizes, device: torch.device) -> Case:
    draw, scale = _Draw(sizes, device), sizes.hidden**-0.5
    heads = [(draw(sizes.vocabulary, sizes.hidden).detach() * scale) for _ in range(2)]
    inputs = {
        "hidden": draw(sizes.tokens, sizes.hidden),
        "weight": heads[0].requires_grad_(),
        "target_hidden": draw(sizes.tokens, sizes.hidden).detach(),
        "target_weight": heads[1],
    }

    implementations: dict[str, Implementation] = {
        "hybridize": kernels.linear_kl_divergence,
        "torch": torch_kl_divergence,
    }
    operations = 4 * sizes.tokens * sizes.vocabulary * sizes.hidden
    return Case(inputs, implementations, operations, total_bytes(inputs))


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
