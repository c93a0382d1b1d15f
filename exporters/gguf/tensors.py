"""A model's tensors as llama.cpp's Granite hybrid names, shapes and orders them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hybridize.checkpoints.tensors import Tensors
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.layers.rope import RotaryEmbedding
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes

_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "in_proj": "ssm_in", "out_proj": "ssm_out", "conv1d": "ssm_conv1d", "norm": "ssm_norm",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
"""A mixer's modules in the words of ``gguf.TENSOR_NAMES``."""
_BARE = {"dt_bias": "ssm_dt.bias", "A_log": "ssm_a", "D": "ssm_d"}
_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

_Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Outgoing:
    """One tensor of a GGUF file.

    Attributes:
        name: its name there.
        shape: as torch counts dimensions; the file counts them from the other end.
        matrix: whether it may be stored in 16 bits; llama.cpp wants all else in float32.
        read: makes it.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    read: Callable[[], torch.Tensor]

    def nbytes(self, dtype: torch.dtype) -> int:
        """Return its size where matrices have ``dtype``."""
        return math.prod(self.shape) * (dtype if self.matrix else torch.float32).itemsize


def tensor_plan(config: HybridConfig, tensors: Tensors) -> list[Outgoing]:
    """Return everything that the file of a model without `obstacles` holds, in its order."""
    plan = list(_rope_factors(config))
    blocks = config.blocks
    for name, shape in parameter_shapes(config).items():
        if name in _GLOBAL:
            plan.append(_outgoing(_GLOBAL[name], name, shape, tensors, _same))
            continue
        _, _, index, part, *rest = name.split(".")  # model.blocks.7.mixer.q_proj.weight
        block, layer = blocks[int(index)], f"blk.{int(index) // 2}."
        if part == "norm":
            norm = "ffn_norm" if int(index) % 2 else "attn_norm"
            plan.append(_outgoing(f"{layer}{norm}.weight", name, shape, tensors, _same))
            continue
        module, leaf = rest if len(rest) == 2 else ("", rest[0])
        new_name = layer + (_BARE[leaf] if not module else f"{_NAMES[module]}.{leaf}")
        change: _Change = _same
        if isinstance(block, MambaSizes):
            shape, change = _mamba_change(module, leaf, block, shape)
        elif isinstance(block, AttentionSizes) and module in ("q_proj", "k_proj") and block.rope:
            change = _interleaving(block.head_dim, rotary_dim(config))
        plan.append(_outgoing(new_name, name, shape, tensors, change))
        if module == "conv1d" and isinstance(block, MambaSizes) and not block.conv_bias:
            plan.append(_zeros(f"{layer}ssm_conv1d.bias", block.conv_channels))
    return plan


def rotary_dim(config: HybridConfig) -> int:
    """Return how much of a head RoPE turns."""
    assert config.head_dim is not None
    return int(config.head_dim * (config.rope_parameters or {}).get("partial_rotary_factor", 1.0))


def _outgoing(
    name: str, ours: str, shape: tuple[int, ...], tensors: Tensors, change: _Change
) -> Outgoing:
    small = len(shape) == 1 or any(part in name for part in ("ssm_conv1d", "ssm_norm", "ssm_a"))
    matrix = not small and "ssm_d" not in name
    return Outgoing(name, shape, matrix, lambda: change(tensors.get(ours)))


def _zeros(name: str, length: int) -> Outgoing:
    """Return the convolution bias that llama.cpp adds whether there is one or not."""
    return Outgoing(name, (length,), False, lambda: torch.zeros(length))


def _mamba_change(
    module: str, leaf: str, mamba: MambaSizes, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], _Change]:
    """Return the shape of one of a Mamba-2 mixer's tensors there, and how to get to it."""
    if leaf in ("A_log", "D"):
        column = (mamba.num_heads, 1)
        if leaf == "D":
            return column, lambda tensor: tensor.reshape(column)
        return column, lambda tensor: -tensor.double().exp().reshape(column)
    if module == "norm":
        groups = (mamba.n_groups, mamba.d_inner // mamba.n_groups)
        return groups, lambda tensor: tensor.reshape(groups)
    if module == "conv1d" and leaf == "weight":
        return (shape[0], shape[2]), lambda tensor: tensor.squeeze(1)
    return shape, _same


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _interleaving(head_dim: int, rotary: int) -> _Change:
    """Return what reorders the rows of each head for RoPE over neighbors.

    transformers turns feature i together with i + rotary / 2, llama.cpp's Granite 2 i with
    2 i + 1. Scores do not change when queries and keys are reordered alike.
    """
    turned = torch.arange(rotary).view(2, rotary // 2).T.flatten()
    order = torch.cat([turned, torch.arange(rotary, head_dim)])

    def change(tensor: torch.Tensor) -> torch.Tensor:
        heads = tensor.unflatten(0, (-1, head_dim))
        return heads[:, order].flatten(0, 1)

    return change


def _rope_factors(config: HybridConfig) -> Iterator[Outgoing]:
    """Yield what the usual frequencies are divided by, where it is not one.

    The loader divides each frequency by its factor, so any scaling that does not depend on the
    length (llama3, linear, yarn) is the same there to the last bit.
    """
    if config.head_dim is None:
        return
    rotary = RotaryEmbedding(config)
    usual, _ = RotaryEmbedding.compute_default_rope_parameters(config)
    factors = usual / rotary.inv_freq
    if not torch.equal(factors, torch.ones_like(factors)):
        yield Outgoing(ROPE_FACTORS, tuple(factors.shape), False, lambda: factors)


def attention_factor(config: HybridConfig) -> float:
    """Return what yarn multiplies cosines and sines by; else 1."""
    return 1.0 if config.head_dim is None else float(RotaryEmbedding(config).attention_scaling)
