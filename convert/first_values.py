"""The first values of a Mamba-2 block that replaces an attention block.

Mamba-2's scan is linear attention with a decay: C is the query, B the key, x the value
(Dao & Gu 2024, arXiv 2405.21060, section 4; Wang et al. 2024, arXiv 2408.15237, section 3).
So C starts as W_q, B as W_k, x as W_v and the output projection as W_o. The other parts of a
Mamba-2 block start with values that change little:

- SiLU after the convolution: x is scaled down to the range in which SiLU is nearly linear. The
  output norm undoes the scale.
- Scores: attention's weights are positive, but C·B may be negative. The convolution's bias adds one
  to B and C, so that a score is a positive constant plus q·k: the first terms of softmax's
  exponential.
- The gate: its projection is zero, and its bias makes SiLU(z) = 1. Without biases the gate stays
  closed until `calibration` finds weights that open it.
- The output norm: its weight restores the root mean square of the values, times one half, because
  attention averages them and averages are smaller.

The new block has no RoPE; the decay gives it a notion of distance instead.
"""

import math

import torch
from torch.nn import functional as F

from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.checkpoints.padding import pad_projection
from hybridize.checkpoints.tensors import Tensors
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec

# Chosen by the KL divergence on a trained Llama of five layers; see docs/conversion.md.
_VALUE_RMS = 0.1
_SCORE_OFFSET = 1.0
_DT = 0.1
_SHORTEST_MEMORY, _LONGEST_MEMORY = 1.0, 32.0  # tokens, spread over the heads
_OUTPUT_SHRINK = 0.5
UNIT_GATE = 1.2784645427610738
"""The number whose SiLU is 1."""


def first_values(
    source: Tensors, index: int, mamba: MambaSizes, config: ModelSpec, init: str, seed: int
) -> dict[str, torch.Tensor]:
    """Return a new block's values: name in the mixer to float32 tensor.

    Args:
        source: the source's tensors.
        index: the block's index in the layout.
        mamba: the block's sizes.
        config: the source's configuration.
        init: ``attention`` (see the module) or ``random`` (as mamba_ssm starts a new model).
        seed: random seed; each block has its own random numbers.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    if init == "random":
        return random_values(mamba, config, generator)
    attention = config.blocks[index]
    assert isinstance(attention, AttentionSizes)
    return attention_values(source, index, attention, mamba, config, generator)


def random_values(
    mamba: MambaSizes, config: ModelSpec, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the values with which mamba_ssm starts a new block: name to float32 tensor.

    Δt is log-uniform from 1e-3 to 1e-1; the decay rates are uniform from 1 to 16.
    """
    values = {}
    for name, shape in mamba.shapes(config.hidden_size).items():
        values[name] = torch.zeros(shape)
        if name.endswith("proj.weight"):
            values[name].normal_(0, config.initializer_range, generator=generator)
    bound = mamba.conv_kernel**-0.5
    values["conv1d.weight"].uniform_(-bound, bound, generator=generator)
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.empty(mamba.num_heads).uniform_(low, high, generator=generator).exp()
    values["dt_bias"] = _softplus_inverse(dt)
    values["A_log"] = torch.empty(mamba.num_heads).uniform_(1, 16, generator=generator).log()
    values["D"] = torch.ones(mamba.num_heads)
    values["norm.weight"] = torch.ones(mamba.d_inner)
    return values


def attention_values(
    source: Tensors,
    index: int,
    attention: AttentionSizes,
    mamba: MambaSizes,
    config: ModelSpec,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return a new block's values, made from the attention block that it replaces.

    Args:
        source: the source's tensors.
        index: the block's index in the layout.
        attention: sizes of the old block.
        mamba: sizes of the new block.
        config: the source's configuration.
        generator: for values that do not follow from the attention, such as additional keys.

    Returns:
        Name in the mixer to float32 tensor.
    """
    hidden = config.hidden_size
    copies = mamba.num_heads // pad_heads(attention, hidden).num_heads
    prefix = f"model.blocks.{index}"
    norm = source.get(f"{prefix}.norm.weight").float()
    projections = {
        letter: _Projection(source, f"{prefix}.mixer.{letter}_proj", attention, hidden, norm)
        for letter in "qkv"
    }
    gate, x, b, c, heads = mamba.in_proj_splits()
    weight = torch.zeros(sum((gate, x, b, c, heads)), hidden)
    offset = torch.zeros(mamba.conv_channels)

    value = projections.pop("v")
    nonzero = value.rms[value.rms > 0]
    value_rms = torch.where(value.rms > 0, value.rms, nonzero.mean() if len(nonzero) else 1.0)
    value.scale_to(1.0)
    value.fill_zero_heads(config.initializer_range, generator)
    weight[gate : gate + x] = value.weight.repeat_interleave(copies, 0).flatten(0, 1)
    offset[:x] = _VALUE_RMS * value.bias.repeat_interleave(copies, 0).flatten()

    keys, queries = projections.pop("k"), projections.pop("q")
    for projection in (keys, queries):
        projection.scale_to(1.0)
        projection.fill_zero_heads(config.initializer_range, generator)
    B, b_bias, C, c_bias = _scores(keys, queries, mamba, generator)
    weight[gate + x : gate + x + b] = B.flatten(0, 1)
    weight[gate + x + b : gate + x + b + c] = C.flatten(0, 1)
    offset[x : x + b], offset[x + b :] = b_bias.flatten(), c_bias.flatten()

    filters = torch.zeros(mamba.conv_channels, 1, mamba.conv_kernel)
    filters[:, :, -1] = 1.0
    # The filters are scaled, not the projection: Adam's steps would be too large for small weights.
    filters[:x] *= _VALUE_RMS
    memory = torch.logspace(
        math.log10(_SHORTEST_MEMORY), math.log10(_LONGEST_MEMORY), mamba.num_heads
    )
    dt = torch.full((mamba.num_heads,), _DT)
    biases = {}
    if mamba.proj_bias:
        biases = {"in_proj.bias": torch.zeros(len(weight)), "out_proj.bias": torch.zeros(hidden)}
        biases["in_proj.bias"][:gate] = UNIT_GATE
        if attention.out_bias:
            biases["out_proj.bias"] = source.get(f"{prefix}.mixer.o_proj.bias").float()
    return {
        "in_proj.weight": weight,
        "conv1d.weight": filters,
        "conv1d.bias": offset,
        "dt_bias": _softplus_inverse(dt),
        "A_log": -torch.log(memory * dt),
        "D": torch.zeros(mamba.num_heads),
        "norm.weight": (_OUTPUT_SHRINK * value_rms)
        .repeat_interleave(copies)
        .repeat_interleave(mamba.head_dim),
        "out_proj.weight": _output_projection(source, prefix, attention, hidden, copies),
        **biases,
    }


def _output_projection(
    source: Tensors, prefix: str, attention: AttentionSizes, hidden: int, copies: int
) -> torch.Tensor:
    """Return W_o for a block that has ``copies`` heads for each head of the attention.

    The copies of a head share its weights, and each adds an equal part to the output.
    """
    out = pad_projection(
        "o_proj",
        source.get(f"{prefix}.mixer.o_proj.weight").float(),
        attention,
        pad_heads(attention, hidden),
    )
    out = out.unflatten(1, (-1, attention.head_dim)).repeat_interleave(copies, 1)
    return out.flatten(1) / copies


class _Projection:
    """One of attention's input projections, split into heads.

    Attributes:
        weight: ``(heads, head_dim, hidden)``; keys and values are repeated for each query head.
        bias: ``(heads, head_dim)``.
        rms: ``(heads,)``, the root mean square of a head's outputs for an input with independent
            features.
    """

    def __init__(
        self, source: Tensors, name: str, attention: AttentionSizes, hidden: int, norm: torch.Tensor
    ) -> None:
        padded = pad_heads(attention, hidden)
        module = name.rpartition(".")[2]

        def per_head(tensor: torch.Tensor) -> torch.Tensor:
            tensor = pad_projection(module, tensor.float(), attention, padded)
            return tensor.unflatten(0, (-1, attention.head_dim))

        weight = per_head(source.get(f"{name}.weight"))
        bias = torch.zeros(weight.shape[:2])
        if attention.qkv_bias:
            bias = per_head(source.get(f"{name}.bias"))
        if attention.qk_norm and module != "v_proj":
            # Only the norm's weight can be folded in; the normalization itself cannot.
            scale = source.get(name.replace("_proj", "_norm") + ".weight").float()
            weight, bias = weight * scale[:, None], bias * scale
        rms = (weight.square() @ norm.square() + bias.square()).mean(-1).sqrt()
        repeats = padded.num_heads // len(weight)
        self.weight, self.bias, self.rms = (
            tensor if repeats == 1 else tensor.repeat_interleave(repeats, 0)
            for tensor in (weight, bias, rms)
        )

    def scale_to(self, rms: float) -> None:
        """Scale all heads by one factor, such that their common root mean square is ``rms``."""
        nonzero = self.rms[self.rms > 0]
        if len(nonzero):
            factor = rms / nonzero.square().mean().sqrt()
            self.weight, self.bias = self.weight * factor, self.bias * factor
            self.rms = self.rms * factor

    def fill_zero_heads(self, std: float, generator: torch.Generator) -> None:
        """Give random weights to heads that are all zero, which would never get a gradient."""
        for head in (self.rms == 0).nonzero().flatten().tolist():
            self.weight[head].normal_(0, std, generator=generator)


def _scores(
    keys: _Projection, queries: _Projection, mamba: MambaSizes, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return B, its convolution bias, C, and its convolution bias.

    B and C of a group are the means of its heads' keys and queries. If the state is smaller than
    the head dim, it keeps the directions with the largest products of queries and keys. If it is
    larger, the additional rows of B are random, and those of C are zero.
    """

    def grouped(projection: _Projection) -> torch.Tensor:
        joined = torch.cat([projection.weight, projection.bias[..., None]], dim=-1)
        return joined.unflatten(0, (mamba.n_groups, -1)).mean(1)  # (groups, head_dim, hidden + 1)

    B, C = grouped(keys), grouped(queries)
    offset = torch.full(B.shape[:2], _SCORE_OFFSET)
    if mamba.d_state < B.shape[1]:
        B, C = _truncate(B, C, mamba.d_state)
        offset = offset[:, : mamba.d_state]
    elif mamba.d_state > B.shape[1]:
        more = mamba.d_state - B.shape[1]
        new = torch.zeros(mamba.n_groups, more, B.shape[2])
        new[..., :-1].normal_(0, float(B.std()), generator=generator)
        B = torch.cat([B, new], dim=1)
        C = F.pad(C, (0, 0, 0, more))
        offset = F.pad(offset, (0, more))
    return B[..., :-1], B[..., -1] + offset, C[..., :-1], C[..., -1] + offset


def _truncate(B: torch.Tensor, C: torch.Tensor, d_state: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and C with fewer rows: transpose(C) @ B keeps its largest singular values."""
    qb, rb = torch.linalg.qr(B.transpose(1, 2))
    qc, rc = torch.linalg.qr(C.transpose(1, 2))
    u, s, vh = torch.linalg.svd(rc @ rb.transpose(1, 2))
    root = s[:, None, :d_state].sqrt()
    return (
        (qb @ vh.transpose(1, 2)[..., :d_state] * root).transpose(1, 2),
        (qc @ u[..., :d_state] * root).transpose(1, 2),
    )


def _softplus_inverse(value: torch.Tensor) -> torch.Tensor:
    return value + torch.log(-torch.expm1(-value))
