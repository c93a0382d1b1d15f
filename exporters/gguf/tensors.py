"""The names, shapes and order of the tensors in a GGUF file, for llama.cpp's Granite hybrid."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hybridize.checkpoints.tensors import Tensors
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.rope import RotaryEmbedding
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes

_MODULE_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "in_proj": "ssm_in", "out_proj": "ssm_out", "conv1d": "ssm_conv1d", "norm": "ssm_norm",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
"""The names in ``gguf.TENSOR_NAMES``, by the module of a mixer."""
_PARAMETER_NAMES = {"dt_bias": "ssm_dt.bias", "A_log": "ssm_a", "D": "ssm_d"}
_MODEL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

_Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: the name in the file.
        shape: in torch's order of dimensions; the file stores the reverse.
        matrix: whether the tensor may be stored in 16 bits; llama.cpp needs the others in float32.
        read: a function that reads and returns the values.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    read: Callable[[], torch.Tensor]

    def nbytes(self, dtype: torch.dtype) -> int:
        """Return the size in bytes if matrices have ``dtype``."""
        return math.prod(self.shape) * (dtype if self.matrix else torch.float32).itemsize


def tensor_plan(spec: ModelSpec, tensors: Tensors) -> list[GgufTensor]:
    """Return the tensors of a file, in its order.

    Args:
        spec: the model's sizes; see `unsupported_features` for those that are possible.
        tensors: the model's tensors. They are read when the file is written.
    """
    plan = list(_rope_factors(spec))
    blocks = spec.blocks
    for name, shape in parameter_shapes(spec).items():
        if name in _MODEL_NAMES:
            plan.append(_tensor(_MODEL_NAMES[name], name, shape, tensors, _identity))
            continue
        _, _, index, part, *rest = name.split(".")  # model.blocks.7.mixer.q_proj.weight
        block, layer = blocks[int(index)], f"blk.{int(index) // 2}."
        if part == "norm":
            norm = "ffn_norm" if int(index) % 2 else "attn_norm"
            plan.append(_tensor(f"{layer}{norm}.weight", name, shape, tensors, _identity))
            continue
        module, leaf = rest if len(rest) == 2 else ("", rest[0])
        new_name = layer + (
            _PARAMETER_NAMES[leaf] if not module else f"{_MODULE_NAMES[module]}.{leaf}"
        )
        transform: _Transform = _identity
        if isinstance(block, MambaSizes):
            shape, transform = _mamba_layout(module, leaf, block, shape)
        elif isinstance(block, AttentionSizes) and module in ("q_proj", "k_proj") and block.rope:
            transform = _interleave_rope(block.head_dim, rotary_dim(spec))
        plan.append(_tensor(new_name, name, shape, tensors, transform))
        if module == "conv1d" and isinstance(block, MambaSizes) and not block.conv_bias:
            plan.append(_zeros(f"{layer}ssm_conv1d.bias", block.conv_channels))
    return plan


def rotary_dim(spec: ModelSpec) -> int:
    """Return the number of features of a head that RoPE rotates."""
    assert spec.head_dim is not None
    return int(spec.head_dim * (spec.rope_parameters or {}).get("partial_rotary_factor", 1.0))


def _tensor(
    name: str, ours: str, shape: tuple[int, ...], tensors: Tensors, transform: _Transform
) -> GgufTensor:
    small = len(shape) == 1 or any(part in name for part in ("ssm_conv1d", "ssm_norm", "ssm_a"))
    matrix = not small and "ssm_d" not in name
    return GgufTensor(name, shape, matrix, lambda: transform(tensors.get(ours)))


def _zeros(name: str, length: int) -> GgufTensor:
    """Return a bias of zeros, because llama.cpp always adds a convolution bias."""
    return GgufTensor(name, (length,), False, lambda: torch.zeros(length))


def _mamba_layout(
    module: str, leaf: str, mamba: MambaSizes, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], _Transform]:
    """Return the shape that a tensor of a Mamba-2 mixer has in the file, and its transform."""
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
    return shape, _identity


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _interleave_rope(head_dim: int, rotary: int) -> _Transform:
    """Return a transform that reorders the rows of each head for RoPE on adjacent pairs.

    transformers rotates the features i and i + rotary / 2 together. llama.cpp's Granite rotates
    2 i and 2 i + 1. Attention scores do not change if queries and keys are reordered alike.
    """
    pairs = torch.arange(rotary).view(2, rotary // 2).T.flatten()
    order = torch.cat([pairs, torch.arange(rotary, head_dim)])

    def transform(tensor: torch.Tensor) -> torch.Tensor:
        heads = tensor.unflatten(0, (-1, head_dim))
        return heads[:, order].flatten(0, 1)

    return transform


def _rope_factors(spec: ModelSpec) -> Iterator[GgufTensor]:
    """Yield the tensor of factors that divide the default frequencies, unless all are 1.

    llama.cpp divides each frequency by its factor. Any scaling that does not depend on the length
    (llama3, linear, yarn) is therefore reproduced exactly.
    """
    if spec.head_dim is None:
        return
    hybrid_config = HybridConfig.from_spec(spec)
    rotary = RotaryEmbedding(hybrid_config)
    default, _ = RotaryEmbedding.compute_default_rope_parameters(hybrid_config)
    factors = default / rotary.inv_freq
    if not torch.equal(factors, torch.ones_like(factors)):
        yield GgufTensor(ROPE_FACTORS, tuple(factors.shape), False, lambda: factors)


def attention_factor(spec: ModelSpec) -> float:
    """Return the factor that yarn multiplies cosines and sines by; 1 for other types."""
    if spec.head_dim is None:
        return 1.0
    return float(RotaryEmbedding(HybridConfig.from_spec(spec)).attention_scaling)
