"""The first values of a Mamba-2 block that takes an attention block's place.

Mamba-2's scan is linear attention with a decay: C is the query, B the key, x the value
(Dao & Gu 2024, arXiv 2405.21060, section 4; Wang et al. 2024, arXiv 2408.15237, section 3).
So C starts as W_q, B as W_k, x as W_v and the output projection as W_o. What is in the way
is made harmless:

- SiLU after the convolution: x is scaled down to where SiLU is nearly linear. The output norm
  makes up for the scale.
- Scores may be negative, attention's weights are not: B and C are offset by one through the
  convolution's bias, so that scores start around a positive constant with q·k on top, the first
  terms of softmax's exponential.
- The gate: its projection is zero and its bias makes SiLU(z) = 1. Without biases it stays shut
  until `calibrate` has found weights that do the same.
- The norm: its weight restores the values' usual size, halved, as averages are smaller.

RoPE has no place in the new block; the decay takes over as the notion of distance.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.checkpoints.tensors import Tensors, pad_projection
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes

# Chosen by KL to the teacher on a trained Llama of five layers; see docs/conversion.md.
_VALUE_RMS = 0.1
_SCORE_OFFSET = 1.0
_STEP = 0.1
_SHORTEST_MEMORY, _LONGEST_MEMORY = 1.0, 32.0  # tokens, spread over the heads
_OUTPUT_SHRINK = 0.5
UNIT_GATE = 1.2784645427610738  # SiLU of this is 1


NewValues = Callable[[int, MambaSizes], dict[str, torch.Tensor]]
"""Given a new block's place and sizes: its values, by their names in the mixer."""


class ConvertedTensors:
    """The tensors of a converted model: the source's own, and those of new blocks.

    Args:
        source: the source's tensors.
        before: the source's configuration.
        after: the conversion's target; at swapped blocks it has Mamba-2 instead of attention.
        new_values: makes the new blocks', one block after the other.
        allow_nonfinite: hand out new blocks with NaN or infinity in them.
    """

    def __init__(
        self,
        source: Tensors,
        before: HybridConfig,
        after: HybridConfig,
        new_values: NewValues,
        *,
        allow_nonfinite: bool = False,
    ) -> None:
        self._source, self._after, self._new_values = source, after, new_values
        self._allow_nonfinite = allow_nonfinite
        self._swapped = {
            index
            for index, (old, new) in enumerate(zip(before.layout, after.layout, strict=True))
            if old != new
        }
        self._current: tuple[int, dict[str, torch.Tensor]] | None = None

    def get(self, name: str) -> torch.Tensor:
        """See `Tensors.get`."""
        index = self._swapped_block(name)
        if index is None:
            return self._source.get(name)
        if self._current is None or self._current[0] != index:
            self._current = None  # one block's tensors at a time
            self._current = (index, self._values(index))
        return self._current[1][name.split(".mixer.")[1]]

    def dtype(self, name: str) -> torch.dtype:
        """See `Tensors.dtype`."""
        index = self._swapped_block(name)
        return self._source.dtype(
            name if index is None else f"model.blocks.{index}.mixer.q_proj.weight"
        )

    def _swapped_block(self, name: str) -> int | None:
        if ".mixer." not in name:
            return None
        index = int(name.split(".")[2])
        return index if index in self._swapped else None

    def _values(self, index: int) -> dict[str, torch.Tensor]:
        mamba = self._after.blocks[index]
        assert isinstance(mamba, MambaSizes)
        values = self._new_values(index, mamba)
        dtype = self.dtype(f"model.blocks.{index}.mixer.in_proj.weight")
        cast = {name: value.to(dtype) for name, value in values.items()}
        bad = [name for name, value in cast.items() if not is_finite(value)]
        if bad and not self._allow_nonfinite:
            raise InputError(
                f"block {index}: its new {bad[0]} has NaN or infinity in it: the weights of the "
                "attention are too large; `allow_nonfinite` accepts that"
            )
        return cast


def first_values(
    source: Tensors, index: int, mamba: MambaSizes, config: HybridConfig, init: str, seed: int
) -> dict[str, torch.Tensor]:
    """Return a new block's values: name in the mixer to float32 tensor.

    Args:
        source: the source's tensors.
        index: the block's place.
        mamba: its sizes.
        config: the source's configuration.
        init: ``attention`` (see the module) or ``random`` (as mamba_ssm starts a new model).
        seed: of all that is random, together with the place.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    if init == "random":
        return random_values(mamba, config, generator)
    attention = config.blocks[index]
    assert isinstance(attention, AttentionSizes)
    return attention_values(source, index, attention, mamba, config, generator)


def random_values(
    mamba: MambaSizes, config: HybridConfig, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return a new block's values as mamba_ssm draws them: name to float32 tensor.

    Steps are log-uniform in 1e-3 to 1e-1, decay rates uniform in 1 to 16.
    """
    values = {}
    for name, shape in mamba.shapes(config.hidden_size).items():
        values[name] = torch.zeros(shape)
        if name.endswith("proj.weight"):
            values[name].normal_(0, config.initializer_range, generator=generator)
    bound = mamba.conv_kernel**-0.5
    values["conv1d.weight"].uniform_(-bound, bound, generator=generator)
    low, high = math.log(1e-3), math.log(1e-1)
    step = torch.empty(mamba.num_heads).uniform_(low, high, generator=generator).exp()
    values["dt_bias"] = _softplus_inverse(step)
    values["A_log"] = torch.empty(mamba.num_heads).uniform_(1, 16, generator=generator).log()
    values["D"] = torch.ones(mamba.num_heads)
    values["norm.weight"] = torch.ones(mamba.d_inner)
    return values


def attention_values(
    source: Tensors,
    index: int,
    attention: AttentionSizes,
    mamba: MambaSizes,
    config: HybridConfig,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return a new block's values, made from the attention block that it replaces.

    Args:
        source: the source's tensors.
        index: the block's place.
        attention: sizes of the old block.
        mamba: sizes of the new one.
        config: the source's configuration.
        generator: for what attention says nothing about.

    Returns:
        Name in the mixer to float32 tensor.
    """
    hidden = config.hidden_size
    heads_per_head = mamba.num_heads // pad_heads(attention, hidden).num_heads
    prefix = f"model.blocks.{index}"
    norm = source.get(f"{prefix}.norm.weight").float()
    projections = {
        letter: _Projection(source, f"{prefix}.mixer.{letter}_proj", attention, hidden, norm)
        for letter in "qkv"
    }
    gate, x, b, c, dt = mamba.in_proj_splits()
    weight = torch.zeros(sum((gate, x, b, c, dt)), hidden)
    offset = torch.zeros(mamba.conv_channels)

    value = projections.pop("v")
    live = value.rms[value.rms > 0]
    usual = torch.where(value.rms > 0, value.rms, live.mean() if len(live) else 1.0)
    value.scale_to(1.0)
    value.revive(config.initializer_range, generator)
    weight[gate : gate + x] = value.weight.repeat_interleave(heads_per_head, 0).flatten(0, 1)
    offset[:x] = _VALUE_RMS * value.bias.repeat_interleave(heads_per_head, 0).flatten()

    keys, queries = projections.pop("k"), projections.pop("q")
    for projection in (keys, queries):
        projection.scale_to(1.0)
        projection.revive(config.initializer_range, generator)
    B, b_bias, C, c_bias = _scores(keys, queries, mamba, generator)
    weight[gate + x : gate + x + b] = B.flatten(0, 1)
    weight[gate + x + b : gate + x + b + c] = C.flatten(0, 1)
    offset[x : x + b], offset[x + b :] = b_bias.flatten(), c_bias.flatten()

    filters = torch.zeros(mamba.conv_channels, 1, mamba.conv_kernel)
    filters[:, :, -1] = 1.0
    # Scaled here and not in the projection, whose small weights Adam's steps would throw about.
    filters[:x] *= _VALUE_RMS
    memory = torch.logspace(
        math.log10(_SHORTEST_MEMORY), math.log10(_LONGEST_MEMORY), mamba.num_heads
    )
    step = torch.full((mamba.num_heads,), _STEP)
    out = pad_projection(
        "o_proj",
        source.get(f"{prefix}.mixer.o_proj.weight").float(),
        attention,
        pad_heads(attention, hidden),
    )
    out = out.unflatten(1, (-1, attention.head_dim)).repeat_interleave(heads_per_head, 1)
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
        "dt_bias": _softplus_inverse(step),
        "A_log": -torch.log(memory * step),
        "D": torch.zeros(mamba.num_heads),
        "norm.weight": (_OUTPUT_SHRINK * usual)
        .repeat_interleave(heads_per_head)
        .repeat_interleave(mamba.head_dim),
        "out_proj.weight": out.flatten(1) / heads_per_head,
        **biases,
    }


class _Projection:
    """One of attention's input projections, taken apart into heads.

    Attributes:
        weight: ``(heads, head_dim, hidden)``; keys and values are repeated over their queries.
        bias: ``(heads, head_dim)``.
        rms: ``(heads,)``, what a head's outputs measure on input of independent features.
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
            # The norm's weight folds in; that it also fixes each head's length does not.
            scale = source.get(name.replace("_proj", "_norm") + ".weight").float()
            weight, bias = weight * scale[:, None], bias * scale
        rms = (weight.square() @ norm.square() + bias.square()).mean(-1).sqrt()
        repeats = padded.num_heads // len(weight)
        self.weight, self.bias, self.rms = (
            tensor if repeats == 1 else tensor.repeat_interleave(repeats, 0)
            for tensor in (weight, bias, rms)
        )

    def scale_to(self, rms: float) -> None:
        """Scale all heads alike, so that they measure ``rms`` taken together."""
        live = self.rms[self.rms > 0]
        if len(live):
            factor = rms / live.square().mean().sqrt()
            self.weight, self.bias = self.weight * factor, self.bias * factor
            self.rms = self.rms * factor

    def revive(self, std: float, generator: torch.Generator) -> None:
        """Give heads that are all zero random weights: zero ones would never learn."""
        for head in (self.rms == 0).nonzero().flatten().tolist():
            self.weight[head].normal_(0, std, generator=generator)


def _scores(
    keys: _Projection, queries: _Projection, mamba: MambaSizes, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return B and C with the convolution biases that go with them.

    A group's B and C are the averages of its heads' keys and queries. A state narrower than
    the heads keeps the directions in which queries and keys agree the most; a wider one gets
    random keys that no query asks for yet.
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
    """Return the best B and C of fewer rows: transpose(C) @ B loses its least singular values."""
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
