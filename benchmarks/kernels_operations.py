"""What `kernels.py` measures: each operation on random operands, ours and its peers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hybridize import kernels

HEADS, HEAD_DIM, STATE, GROUPS, HIDDEN = 16, 64, 128, 1, 512


@dataclass
class Shape:
    """Sizes, device and dtype of the operands."""

    batch: int
    tokens: int
    device: torch.device
    dtype: torch.dtype

    def draw(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return random numbers that require a gradient."""
        made = torch.randn(*shape, device=self.device, dtype=dtype or self.dtype)
        return made.requires_grad_()


@dataclass
class Operation:
    """An operation on its operands.

    Attributes:
        inputs: the operands.
        works: the implementations by name, ours first: functions from the operands to the output.
        operations, bytes: the minimum of floating-point operations, and of bytes to move.
    """

    inputs: dict[str, torch.Tensor]
    works: dict[str, Callable[..., torch.Tensor]]
    operations: float
    bytes: float


def ssd_scan(shape: Shape) -> Operation:
    b, n = shape.batch, shape.tokens
    inputs = {
        "x": shape.draw(b, n, HEADS, HEAD_DIM),
        "dt": shape.draw(b, n, HEADS),
        "A": (-torch.rand(HEADS, device=shape.device) - 0.1).requires_grad_(),
        "B": shape.draw(b, n, GROUPS, STATE),
        "C": shape.draw(b, n, GROUPS, STATE),
        "D": shape.draw(HEADS, dtype=torch.float32),
        "dt_bias": shape.draw(HEADS, dtype=torch.float32),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.ssd_scan(**given)[0]

    def theirs(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        return mamba2_chunk_scan(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    def mamba_ssm(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        return scan.mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    works = {"hybridize": ours, "transformers": theirs}
    if shape.device.type == "cuda" and _imports("mamba_ssm"):
        works["mamba_ssm"] = mamba_ssm
    # With chunks of Q tokens, a token takes 2·Q·(N/heads + P) operations within the chunk, half of
    # them masked, and 4·N·P for the state. The best Q for this size is 64.
    chunk = 64
    within = 2 * chunk * (STATE * GROUPS / HEADS + HEAD_DIM) / 2
    operations = b * n * HEADS * (within + 4 * STATE * HEAD_DIM)
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def causal_conv1d(shape: Shape) -> Operation:
    channels = HEADS * HEAD_DIM + 2 * GROUPS * STATE
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, channels),
        "weight": shape.draw(channels, 4),
        "bias": shape.draw(channels),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.causal_conv1d(**given)[0]

    def theirs(x, weight, bias):  # type: ignore[no-untyped-def]
        y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=channels)
        return F.silu(y[..., : x.shape[1]]).transpose(1, 2)

    def compiled(x, weight, bias):  # type: ignore[no-untyped-def]
        module = importlib.import_module("causal_conv1d")
        return module.causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").mT

    works = {"hybridize": ours, "transformers": theirs}
    if shape.device.type == "cuda" and _imports("causal_conv1d"):
        works["causal_conv1d"] = compiled
    return Operation(inputs, works, 8 * inputs["x"].numel(), _bytes(inputs, inputs["x"]))


def gated_rms_norm(shape: Shape) -> Operation:
    width = HEADS * HEAD_DIM
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, width),
        "gate": shape.draw(shape.batch, shape.tokens, width),
        "weight": shape.draw(width),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.gated_rms_norm(**given, eps=1e-5, group_size=width)

    def theirs(x, gate, weight):  # type: ignore[no-untyped-def]
        wide = x.float() * F.silu(gate.float())
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return weight * wide.to(x.dtype)

    works = {"hybridize": ours, "transformers": theirs}
    return Operation(inputs, works, 10 * inputs["x"].numel(), _bytes(inputs, inputs["x"]))


def swiglu(shape: Shape) -> Operation:
    inputs = {name: shape.draw(shape.batch, shape.tokens, 4 * HIDDEN) for name in ("gate", "up")}
    works = {
        "hybridize": kernels.swiglu,
        "transformers": lambda gate, up: F.silu(gate) * up,
    }
    return Operation(inputs, works, 5 * inputs["up"].numel(), _bytes(inputs, inputs["up"]))


def linear(shape: Shape) -> Operation:
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "weight": (shape.draw(4 * HIDDEN, HIDDEN) * HIDDEN**-0.5).detach().requires_grad_(),
    }
    works = {"hybridize": kernels.linear, "torch": F.linear}
    operations = 2 * inputs["x"].numel() * 4 * HIDDEN
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def squared_relu_mlp(shape: Shape) -> Operation:
    width, small = 4 * HIDDEN, HIDDEN**-0.5
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "up": (shape.draw(width, HIDDEN) * small).detach().requires_grad_(),
        "down": (shape.draw(HIDDEN, width) * small).detach().requires_grad_(),
    }
    works = {
        "hybridize": kernels.squared_relu_mlp,
        "torch": lambda x, up, down: F.linear(F.relu(F.linear(x, up)).square(), down),
        "hybridize, layer by layer": lambda x, up, down: F.linear(
            kernels.squared_relu(F.linear(x, up)), down
        ),
    }
    operations = 4 * inputs["x"].numel() * width
    return Operation(inputs, works, operations, _bytes(inputs, inputs["x"]))


def linear_kl_divergence(shape: Shape) -> Operation:
    tokens, vocabulary = min(2048, shape.batch * shape.tokens), 32_000
    inputs = {
        "hidden": shape.draw(tokens, HIDDEN),
        "weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach().requires_grad_(),
        "target_hidden": shape.draw(tokens, HIDDEN).detach(),
        "target_weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach(),
    }

    def plain(hidden, weight, target_hidden, target_weight):  # type: ignore[no-untyped-def]
        teacher = (target_hidden @ target_weight.T).float().log_softmax(-1)
        student = (hidden @ weight.T).float().log_softmax(-1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    works = {"hybridize": kernels.linear_kl_divergence, "torch, all logits": plain}
    operations = 2 * 2 * tokens * vocabulary * HIDDEN
    return Operation(inputs, works, operations, _bytes(inputs))


def attention(shape: Shape) -> Operation:
    """Causal attention of the scan's width, which the scan replaces."""
    inputs = {
        name: shape.draw(shape.batch, HEADS, shape.tokens, HEAD_DIM) for name in ("q", "k", "v")
    }

    def sdpa(q, k, v):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    operations = 2 * shape.batch * HEADS * shape.tokens**2 * HEAD_DIM
    return Operation(inputs, {"torch SDPA": sdpa}, operations, _bytes(inputs, inputs["q"]))


OPERATIONS: dict[str, Callable[[Shape], Operation]] = {
    operation.__name__: operation
    for operation in (
        ssd_scan,
        attention,
        causal_conv1d,
        gated_rms_norm,
        swiglu,
        linear,
        squared_relu_mlp,
        linear_kl_divergence,
    )
}


def _bytes(inputs: dict[str, torch.Tensor], *outputs: torch.Tensor) -> float:
    return float(sum(tensor.nbytes for tensor in (*inputs.values(), *outputs)))


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
