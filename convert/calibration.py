"""Calibration: fit a new Mamba-2 block to the attention block that it replaces, in closed form.

The fit uses the teacher's activations on some text. It takes no gradient steps:

1. Each head chooses how many tokens its convolution looks back, how long its memory is, and how
   strongly its scores depend on content. It tries a few values of each. For each trial, a linear
   map is fitted from the head's features to the output of the attention head; the values with the
   smallest error are chosen.
2. Then the output projection of the block, with its bias if it has one, is the ridge regression of
   the attention's output on the block's features (Hoerl & Kennard 1970). The normal equations are
   summed in float64, batch by batch.

Blocks without projection biases, which llama.cpp requires, get one more regression first. It fits
w such that w·x ≈ 1 for all inputs x of the block. The gate's weights are then a multiple of w, so
that the gate stays open without a bias; the output norm removes the remaining variation.

The convolution matters: many attention heads look one, two or three tokens back. Without RoPE, a
block can do this only with its convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.checkpoints.padding import pad_projection
from hybridize.checkpoints.tensors import Tensors
from hybridize.conversion.first_values import UNIT_GATE
from hybridize.conversion.measurements import BlockError
from hybridize.conversion.moments import Moments
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.materialize import materialize
from hybridize.modeling.model_spec import ModelSpec

_MEMORIES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0)  # tokens
_SCALES = (0.5, 1.0, 2.0, 4.0)

# Penalties of the ridge regressions, in units of the features' mean square.
_HEAD_PENALTY = 1e-3
_GATE_PENALTY = 1e-4
_OUTPUT_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The one with the smallest error on held-out text is used."""

_TOKENS_PER_BATCH = 2048
_HELD_OUT_EVERY = 8
"""One sequence in this many is held out of the fit."""


class Calibrator:
    """Fits new blocks to the teacher's activations, with one block in memory at a time.

    Fit the blocks in the order of the layout. Going back to an earlier block runs the text through
    the model again.

    Args:
        source: the teacher's tensors.
        config: the teacher's configuration.
        dataset: the calibration text.
        device: where to compute.
        remember: keep all fitted values, so that a second call for a block returns them.

    Attributes:
        dataset, device: as given.

    Raises:
        InputError: the text has fewer than two sequences, so that none can be held out.
    """

    def __init__(
        self,
        source: Tensors,
        config: ModelSpec,
        dataset: PackedDataset,
        device: torch.device | str = "cpu",
        *,
        remember: bool = False,
    ) -> None:
        if len(dataset) < 2:
            raise InputError(
                f"`calibration`: {len(dataset)} sequence of {dataset.length} tokens; "
                "calibration needs 2 or more: give more text or raise `calibration_tokens`"
            )
        self._teacher = BlockwiseModel(source, config, device)
        self.dataset, self.device = dataset, torch.device(device)
        self._batch_size = max(1, _TOKENS_PER_BATCH // dataset.length)
        self._next = 0  # the block whose inputs are in _stream
        self._stream: list[torch.Tensor] = []
        self._remembered: dict[int, dict[str, torch.Tensor]] | None = {} if remember else None
        self._errors: dict[int, BlockError] = {}

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """The errors of all fitted blocks, in the order of the layout."""
        return tuple(error for _, error in sorted(self._errors.items()))

    @torch.no_grad()
    def fit(
        self, index: int, sizes: MambaSizes, start: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the fitted values of a new block.

        Args:
            index: the block's index in the layout.
            sizes: the new block's sizes.
            start: its first values, as `first_values.attention_values` returns them.
        """
        if self._remembered is not None and index in self._remembered:
            return self._remembered[index]
        self._advance(index)
        block = self._teacher.block(index)
        assert isinstance(block.mixer, Attention)
        samples = [
            _Sample.of(block.norm(x), block.mixer, context)
            for x, context in zip(self._stream, self._contexts(), strict=True)
        ]
        mixer = new_mixer(self._teacher.config, sizes, index, start, self._stream[0].device)
        fit = _BlockFit(mixer, block.mixer, samples)
        before = fit.error()
        fit.choose_heads()
        after = fit.solve_output()
        self._errors[index] = BlockError(index, before, after)
        values = {name: value.cpu() for name, value in mixer.state_dict().items()}
        if self._remembered is not None:
            self._remembered[index] = values
        return values

    def _advance(self, index: int) -> None:
        """Run the text through the teacher up to the given block."""
        if not self._stream or index < self._next:
            ids = [self.dataset.sequences(indices)[0] for indices in self._batches()]
            self._stream = [self._teacher.embed(batch) for batch in ids]
            self._next = 0
        for earlier in range(self._next, index):
            block = self._teacher.block(earlier)
            self._stream = [
                block(x, context) for x, context in zip(self._stream, self._contexts(), strict=True)
            ]
        self._next = index

    def _batches(self) -> tuple[torch.Tensor, ...]:
        """Return the indices of the sequences of each batch."""
        return torch.arange(len(self.dataset)).split(self._batch_size)

    def _contexts(self) -> Iterator[BlockContext]:
        for indices, x in zip(self._batches(), self._stream, strict=True):
            yield self._teacher.context(x, self.dataset.sequences(indices)[1].to(x.device))


@dataclass(frozen=True)
class _Sample:
    """The inputs and outputs of one attention block for a batch of text.

    Attributes:
        input: ``(batch, length, hidden)``, after the norm.
        heads: ``(batch, length, heads × head_dim)``, the output of each head.
        output: ``(batch, length, hidden)``, the output of the block.
        context: masks, RoPE angles and packed sequences of the batch.
    """

    input: torch.Tensor
    heads: torch.Tensor
    output: torch.Tensor
    context: BlockContext

    @staticmethod
    def of(x: torch.Tensor, attention: Attention, context: BlockContext) -> "_Sample":
        heads = attention.heads(x, context)
        return _Sample(x, heads, attention.o_proj(heads), context)


class _BlockFit:
    """Fits one new block to the attention block that it replaces.

    Args:
        mixer: the new block, with its first values. It is changed.
        attention: the attention block.
        samples: the inputs and outputs of the attention block.
    """

    def __init__(self, mixer: Mamba2, attention: Attention, samples: list[_Sample]) -> None:
        self._mixer, self._samples, self._sizes = mixer, samples, mixer.sizes
        if not self._sizes.proj_bias:
            self._open_gate()
        self._projected = [mixer.in_proj(sample.input) for sample in samples]
        padded = pad_heads(attention.sizes, attention.o_proj.out_features)
        self._heads, self._copies = padded.num_heads, self._sizes.num_heads // padded.num_heads
        self._targets = [
            pad_projection(
                "o_proj",
                sample.heads[~self._held_out(i)].flatten(0, 1),
                attention.sizes,
                padded,
            )
            .unflatten(1, (padded.num_heads, -1))
            .transpose(0, 1)
            .double()
            for i, sample in enumerate(samples)
        ]  # (heads, tokens, head_dim) each
        self._target_power = sum(target.mT @ target for target in self._targets)
        weight = pad_projection("o_proj", attention.o_proj.weight, attention.sizes, padded)
        weight = weight.unflatten(1, (padded.num_heads, -1)).transpose(0, 1).double()
        self._importance = weight.transpose(1, 2) @ weight  # (heads, head_dim, head_dim)
        self._dt = nn.functional.softplus(mixer.dt_bias).view(self._heads, self._copies)
        # Each channel's filter for x has one nonzero tap. Choosing another lag moves this tap.
        self._gain = mixer.conv1d.weight[: self._sizes.d_inner, 0].sum(-1, keepdim=True)
        device = self._dt.device
        self._lag = torch.zeros(self._heads, self._copies, dtype=torch.long, device=device)
        self._memory = torch.ones(self._heads, self._copies, device=device)
        self._score_lag = torch.zeros(self._sizes.n_groups, dtype=torch.long, device=device)
        self._scale = torch.ones(self._sizes.n_groups, device=device)

    def _open_gate(self) -> None:
        """Set the gate's weights such that the gate is open for every token."""
        moments = Moments(intercept=False)
        for i, sample in enumerate(self._samples):
            x = sample.input[~self._held_out(i)].flatten(0, 1)
            moments.add(x, torch.ones_like(x[:, :1]))
        direction = moments.solve(_GATE_PENALTY).T
        self._mixer.in_proj.weight[: self._sizes.d_inner] = UNIT_GATE * direction

    def error(self) -> float:
        """Return the current error of the block on held-out text; see `BlockError`."""
        squared_error = power = 0.0
        for i, sample in enumerate(self._samples):
            held_out = self._held_out(i)
            got = self._mixer.out_proj(self._features(i))
            squared_error += float((got - sample.output)[held_out].double().square().sum())
            power += float(sample.output[held_out].double().square().sum())
        return squared_error / power if power else 0.0

    def choose_heads(self) -> None:
        """Choose the lag and the memory of each head, and the scale of each group."""
        memories = torch.tensor(_MEMORIES, device=self._memory.device)
        heads = torch.arange(self._heads, device=memories.device)
        width = self._sizes.conv_kernel
        for copy in range(self._copies):  # the second copy of a head adds to the first one's output
            trials = []
            for lag, memory in product(range(width), _MEMORIES):
                self._lag[:, copy:], self._memory[:, copy:] = lag, memory
                if copy == 0:
                    self._score_lag[:] = lag
                trials.append(self._head_errors(copy + 1))
            errors = torch.stack(trials).unflatten(0, (width, -1))  # (lag, memory, head)
            best, memory_of = errors.min(1)
            lag_of = best.argmin(0)
            if copy == 0:  # the heads of a group share B, which has the same lag as x
                self._score_lag = best.unflatten(1, (self._sizes.n_groups, -1)).sum(-1).argmin(0)
                lag_of = self._score_lag.repeat_interleave(self._heads // self._sizes.n_groups)
            self._lag[:, copy:] = lag_of[:, None]
            self._memory[:, copy:] = memories[memory_of[lag_of, heads]][:, None]
            if copy == 0:
                self._choose_scales()
        self._apply()

    def solve_output(self) -> float:
        """Fit the output projection, and return the block's error on held-out text.

        The penalty with the smallest error on the held-out text is used. The returned error is that
        one, measured before the held-out text is added to the fit.
        """
        moments, held_out = Moments(intercept=self._sizes.proj_bias), []
        for i, sample in enumerate(self._samples):
            mask, features = self._held_out(i), self._features(i)
            moments.add(features[~mask].flatten(0, 1), sample.output[~mask].flatten(0, 1))
            held_out.append((features[mask].flatten(0, 1), sample.output[mask].flatten(0, 1)))
        features, output = (torch.cat(parts) for parts in zip(*held_out, strict=True))
        errors = {}
        for penalty in _OUTPUT_PENALTIES:
            self._set_output(moments.solve(penalty))
            squared_error = (self._mixer.out_proj(features) - output).double().square().sum()
            errors[penalty] = float(
                squared_error / output.double().square().sum().clamp(min=1e-300)
            )
        penalty = min(errors, key=errors.__getitem__)
        moments.add(features, output)
        self._set_output(moments.solve(penalty))
        return errors[penalty]

    def _set_output(self, solution: torch.Tensor) -> None:
        width = self._sizes.d_inner
        self._mixer.out_proj.weight.copy_(solution[:width].T)
        if self._sizes.proj_bias:
            self._mixer.out_proj.bias.copy_(solution[width])

    def _choose_scales(self) -> None:
        trials = []
        for scale in _SCALES:
            self._scale[:] = scale
            trials.append(self._head_errors(1).unflatten(0, (self._sizes.n_groups, -1)).sum(-1))
        scales = torch.tensor(_SCALES, device=self._scale.device)
        self._scale = scales[torch.stack(trials).argmin(0)]

    def _head_errors(self, copies: int) -> torch.Tensor:
        """Return ``(heads,)``: each head's error with the best linear map from its features.

        The error is measured after the attention's output projection.

        Args:
            copies: how many copies of each head the map may use.
        """
        self._apply()
        moments = Moments()
        for i, target in enumerate(self._targets):
            fitted = ~self._held_out(i)
            split = (self._heads, self._copies, -1)
            features = self._features(i).unflatten(-1, split)[..., :copies, :].flatten(-2)
            moments.add(features[fitted].flatten(0, 1).transpose(0, 1), target)
        error = moments.error(moments.solve(_HEAD_PENALTY), self._target_power)
        return (error * self._importance).sum((1, 2))

    def _apply(self) -> None:
        """Write the chosen lags, memories and scales into the block's convolution and decay."""
        sizes = self._sizes
        filters = torch.zeros_like(self._mixer.conv1d.weight[:, 0])
        x, B, C = filters.split(
            (sizes.d_inner, sizes.n_groups * sizes.d_state, sizes.n_groups * sizes.d_state)
        )
        newest = sizes.conv_kernel - 1
        lag = self._lag.flatten().repeat_interleave(sizes.head_dim)
        x.scatter_(1, (newest - lag)[:, None], self._gain)
        lag = self._score_lag.repeat_interleave(sizes.d_state)
        scale = self._scale.repeat_interleave(sizes.d_state)
        B.scatter_(1, (newest - lag)[:, None], scale[:, None])
        C[:, newest] = scale
        self._mixer.conv1d.weight.copy_(filters[:, None])
        self._mixer.A_log.copy_(-torch.log(self._memory * self._dt).flatten())

    def _features(self, i: int) -> torch.Tensor:
        """Return the input of the output projection for a sample."""
        return self._mixer.features(self._projected[i], self._samples[i].context)

    def _held_out(self, i: int) -> torch.Tensor:
        """Return which sequences of a sample are held out of the fit, as a mask.

        There is at least one among all samples.
        """
        before = sum(len(sample.input) for sample in self._samples[:i])
        indices = torch.arange(before, before + len(self._samples[i].input))
        return (indices % _HELD_OUT_EVERY == 1).to(self._samples[i].input.device)


def new_mixer(
    config: HybridConfig,
    sizes: MambaSizes,
    index: int,
    values: dict[str, torch.Tensor],
    device: torch.device,
) -> Mamba2:
    """Return a Mamba-2 mixer with the given sizes and values, in float32 and without gradients."""
    return materialize(lambda: Mamba2(config, sizes, index), values.__getitem__, device)
