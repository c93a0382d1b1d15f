"""The operations that `kernels.py` measures: random operands, our implementation and its peers."""

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

HEADS, HEAD_DIM, D_STATE, GROUPS, HIDDEN = 16, 64, 128, 1, 512


@dataclass
class Shape:
    """Sizes, device and dtype of the operands."""

    batch: int
    tokens: int
    device: torch.device
    dtype: torch.dtype

    def draw(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return random numbers that require a gradient."""
        drawn = torch.randn(*shape, device=self.device, dtype=dtype or self.dtype)
        return drawn.requires_grad_()


def ssd_scan(shape: Shape) -> Case:
    b, n = shape.batch, shape.tokens
    inputs = {
        "x": shape.draw(b, n, HEADS, HEAD_DIM),
        "dt": shape.draw(b, n, HEADS),
        "A": (-torch.rand(HEADS, device=shape.device) - 0.1).requires_grad_(),
        "B": shape.draw(b, n, GROUPS, D_STATE),
        "C": shape.draw(b, n, GROUPS, D_STATE),
        "D": shape.draw(HEADS, dtype=torch.float32),
        "dt_bias": shape.draw(HEADS, dtype=torch.float32),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.ssd_scan(**given)[0]

    def transformers_scan(x, dt, A, B, C, D, dt_bias):  # type: ignore[no-untyped-def]
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        return mamba2_chunk_scan(
            x, dt, A, B, C, chunk_size=256, D=D, dt_bias=dt_bias, dt_softplus=True
        )

    implementations: dict[str, Implementation] = {
        "hybridize": ours,
        "transformers": transformers_scan,
    }
    if shape.device.type == "cuda":
        implementations |= installed(mamba_ssm=mamba_ssm_scan)
    # With chunks of Q tokens, a token takes 2·Q·(N·groups/heads + P) operations per head within the
    # chunk, half of them masked, and 4·N·P for the state. The best Q for this size is 64.
    chunk = 64
    within_chunk = 2 * chunk * (D_STATE * GROUPS / HEADS + HEAD_DIM) / 2
    operations = b * n * HEADS * (within_chunk + 4 * D_STATE * HEAD_DIM)
    return Case(inputs, implementations, operations, total_bytes(inputs, inputs["x"]))


def causal_conv1d(shape: Shape) -> Case:
    channels = HEADS * HEAD_DIM + 2 * GROUPS * D_STATE
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, channels),
        "weight": shape.draw(channels, 4),
        "bias": shape.draw(channels),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.causal_conv1d(**given)[0]

    implementations: dict[str, Implementation] = {"hybridize": ours, "transformers": torch_conv1d}
    if shape.device.type == "cuda":
        implementations |= installed(causal_conv1d=causal_conv1d_package)
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 8 * inputs["x"].numel(), moved)


def gated_rms_norm(shape: Shape) -> Case:
    width = HEADS * HEAD_DIM
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, width),
        "gate": shape.draw(shape.batch, shape.tokens, width),
        "weight": shape.draw(width),
    }

    def ours(**given: torch.Tensor) -> torch.Tensor:
        return kernels.gated_rms_norm(**given, eps=1e-5, group_size=width)

    implementations: dict[str, Implementation] = {
        "hybridize": ours,
        "transformers": partial(torch_gated_rms_norm, group_size=width),
    }
    moved = total_bytes(inputs, inputs["x"])
    return Case(inputs, implementations, 10 * inputs["x"].numel(), moved)


def swiglu(shape: Shape) -> Case:
    inputs = {name: shape.draw(shape.batch, shape.tokens, 4 * HIDDEN) for name in ("gate", "up")}
    implementations: dict[str, Implementation] = {
        "hybridize": kernels.swiglu,
        "transformers": lambda gate, up: F.silu(gate) * up,
    }
    moved = total_bytes(inputs, inputs["up"])
    return Case(inputs, implementations, 5 * inputs["up"].numel(), moved)


def linear(shape: Shape) -> Case:
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "weight": (shape.draw(4 * HIDDEN, HIDDEN) * HIDDEN**-0.5).detach().requires_grad_(),
    }
    implementations: dict[str, Implementation] = {"hybridize": kernels.linear, "torch": F.linear}
    operations = 2 * inputs["x"].numel() * 4 * HIDDEN
    return Case(inputs, implementations, operations, total_bytes(inputs, inputs["x"]))


def squared_relu_mlp(shape: Shape) -> Case:
    width, scale = 4 * HIDDEN, HIDDEN**-0.5
    inputs = {
        "x": shape.draw(shape.batch, shape.tokens, HIDDEN),
        "up": (shape.draw(width, HIDDEN) * scale).detach().requires_grad_(),
        "down": (shape.draw(HIDDEN, width) * scale).detach().requires_grad_(),
    }
    implementations: dict[str, Implementation] = {
        "hybridize": kernels.squared_relu_mlp,
        "torch": torch_squared_relu_mlp,
        "hybridize, layer by layer": lambda x, up, down: F.linear(
            kernels.squared_relu(F.linear(x, up)), down
        ),
    }
    operations = 4 * inputs["x"].numel() * width
    return Case(inputs, implementations, operations, total_bytes(inputs, inputs["x"]))


def linear_kl_divergence(shape: Shape) -> Case:
    tokens, vocabulary = min(2048, shape.batch * shape.tokens), 32_000
    inputs = {
        "hidden": shape.draw(tokens, HIDDEN),
        "weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach().requires_grad_(),
        "target_hidden": shape.draw(tokens, HIDDEN).detach(),
        "target_weight": (shape.draw(vocabulary, HIDDEN) * 0.05).detach(),
    }

    implementations: dict[str, Implementation] = {
        "hybridize": kernels.linear_kl_divergence,
        "torch, all logits": torch_kl_divergence,
    }
    operations = 2 * 2 * tokens * vocabulary * HIDDEN
    return Case(inputs, implementations, operations, total_bytes(inputs))


def attention(shape: Shape) -> Case:
    """Causal attention of the same width as the scan, which replaces it."""
    inputs = {
        name: shape.draw(shape.batch, HEADS, shape.tokens, HEAD_DIM) for name in ("q", "k", "v")
    }

    def sdpa(q, k, v):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    operations = 2 * shape.batch * HEADS * shape.tokens**2 * HEAD_DIM
    return Case(inputs, {"torch SDPA": sdpa}, operations, total_bytes(inputs, inputs["q"]))


OPERATIONS: dict[str, Callable[[Shape], Case]] = {
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
