"""Fitting a new Mamba-2 block to the attention block it replaces, in closed form.

From the teacher's activations on some text, and without a gradient step:

- Each head picks how far back its input convolution looks, how long its memory is, and how
  strongly its scores depend on content: those of a few values with which a linear map from its
  features comes closest to the attention head's own output.
- Then the output projection of the whole block, with its bias if it has one, is the ridge
  regression of the attention's output on the block's features (Hoerl & Kennard 1970), from normal
  equations that are summed up in float64 batch by batch.

Without projection biases, which llama.cpp has no place for, a third regression comes first: of 1
on the block's inputs. Normalized inputs have a direction in which they hardly differ, and along it
lies a gate that is open for every token. What it still varies by, the norm behind it takes out.

The convolution does much of it: attention heads that look at the previous token, or two or three
back, have no other counterpart in a block without positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.checkpoints.tensors import Tensors, pad_projection
from hybridize.conversion.first_values import UNIT_GATE
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.materialize import materialize

_MEMORIES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0)  # tokens
_SCALES = (0.5, 1.0, 2.0, 4.0)
_HEAD_PENALTY = 1e-3
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the ridge regression, in units of the features' mean square; chosen on held-out tokens."""

_GATE_PENALTY = 1e-4

_TOKENS_AT_ONCE = 2048
_HELD_OUT = 8  # one window in so many


@dataclass(frozen=True)
class BlockError:
    """How far a new block is from the attention block it replaces.

    Errors are shares of the attention output's power, on calibration text that the fit did not
    see: 0 is the same output, 1 as far off as no output at all.

    Attributes:
        block: its place in the layout.
        before: with the values that attention's weights alone give.
        after: calibrated.
    """

    block: int
    before: float
    after: float


class Calibrator:
    """Fits new blocks to the teacher's activations, one block in memory at a time.

    Blocks are cheapest to fit in their order: an earlier one makes the text run through the
    model anew.

    Args:
        source: the teacher's tensors.
        config: its configuration.
        dataset: the text to run.
        device: where to run it.
        remember: hold on to all fitted values, for a second call to return.

    Attributes:
        dataset, device: as given.

    Raises:
        InputError: there is too little text to hold any of it out.
    """

    def __init__(
        self,
        source: Tensors,
        config: HybridConfig,
        dataset: PackedDataset,
        device: torch.device | str = "cpu",
        *,
        remember: bool = False,
    ) -> None:
        if len(dataset) < 2:
            raise InputError(
                f"`calibration`: {len(dataset)} rows of {dataset.length} tokens; "
                "calibration needs 2 or more"
            )
        self._teacher = BlockwiseModel(source, config, device)
        self.dataset, self.device = dataset, torch.device(device)
        self._rows = max(1, _TOKENS_AT_ONCE // dataset.length)
        self._next = 0
        self._stream: list[torch.Tensor] = []
        self._remembered: dict[int, dict[str, torch.Tensor]] | None = {} if remember else None
        self._errors: dict[int, BlockError] = {}

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """Return how well the blocks were fitted, in the order of their places."""
        return tuple(error for _, error in sorted(self._errors.items()))

    @torch.no_grad()
    def fit(
        self, index: int, sizes: MambaSizes, start: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the values of a new block, fitted.

        Args:
            index: the block's place.
            sizes: of the new block.
            start: its values as `initialize.attention_values` gives them: name to tensor.
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
        before = fit.error()  # with the values it starts from
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
            everything = torch.arange(len(self.dataset))
            ids = [self.dataset.sequences(rows)[0] for rows in everything.split(self._rows)]
            self._stream = [self._teacher.embed(batch) for batch in ids]
            self._next = 0
        for place in range(self._next, index):
            block = self._teacher.block(place)
            self._stream = [
                block(x, context) for x, context in zip(self._stream, self._contexts(), strict=True)
            ]
        self._next = index

    def _contexts(self) -> Iterator[BlockContext]:
        everything = torch.arange(len(self.dataset))
        for rows, x in zip(everything.split(self._rows), self._stream, strict=True):
            yield self._teacher.context(x, self.dataset.sequences(rows)[1].to(x.device))


@dataclass(frozen=True)
class _Sample:
    """A batch of text as one attention block sees it.

    Attributes:
        input: ``(rows, length, hidden)``, after the norm.
        heads: ``(rows, length, heads × head_dim)``, what each head gives.
        output: ``(rows, length, hidden)``.
        context: the blocks' surroundings.
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
    """One new block, being fitted to the attention block it replaces.

    Args:
        mixer: the new block, with its first values; changed.
        attention: the old one.
        samples: its inputs and outputs, every row a window of text.
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
                sample.heads[~self._held_out(place)].flatten(0, 1),
                attention.sizes,
                padded,
            )
            .unflatten(1, (padded.num_heads, -1))
            .transpose(0, 1)
            .double()
            for place, sample in enumerate(samples)
        ]  # (heads, tokens, head_dim) each
        self._target_power = sum(target.mT @ target for target in self._targets)
        weight = pad_projection("o_proj", attention.o_proj.weight, attention.sizes, padded)
        weight = weight.unflatten(1, (padded.num_heads, -1)).transpose(0, 1).double()
        self._importance = weight.transpose(1, 2) @ weight  # (heads, head_dim, head_dim)
        self._step = nn.functional.softplus(mixer.dt_bias).view(self._heads, self._copies)
        # What values are multiplied by, wherever a filter looks.
        self._gain = mixer.conv1d.weight[: self._sizes.d_inner, 0].sum(-1, keepdim=True)
        device = self._step.device
        self._back = torch.zeros(self._heads, self._copies, dtype=torch.long, device=device)
        self._memory = torch.ones(self._heads, self._copies, device=device)
        self._scores_back = torch.zeros(self._sizes.n_groups, dtype=torch.long, device=device)
        self._scale = torch.ones(self._sizes.n_groups, device=device)

    def _open_gate(self) -> None:
        """Let the gate's weights do what a bias would."""
        moments = _Moments(intercept=False)
        for place, sample in enumerate(self._samples):
            x = sample.input[~self._held_out(place)].flatten(0, 1)
            moments.add(x, torch.ones_like(x[:, :1]))
        direction = moments.solve(_GATE_PENALTY).T
        self._mixer.in_proj.weight[: self._sizes.d_inner] = UNIT_GATE * direction

    def error(self) -> float:
        """Return the error of the block as it is, on held-out text."""
        wrong = power = 0.0
        for place, sample in enumerate(self._samples):
            held_out = self._held_out(place)
            got = self._mixer.out_proj(self._features(place))
            wrong += float((got - sample.output)[held_out].double().square().sum())
            power += float(sample.output[held_out].double().square().sum())
        return wrong / power if power else 0.0

    def choose_heads(self) -> None:
        """Choose filters, memories and scales, each head and each group for itself."""
        memories = torch.tensor(_MEMORIES, device=self._memory.device)
        every = torch.arange(self._heads, device=memories.device)
        width = self._sizes.conv_kernel
        for copy in range(self._copies):  # a head's second copy adds to what the first can do
            tried = []
            for back, memory in product(range(width), _MEMORIES):
                self._back[:, copy:], self._memory[:, copy:] = back, memory
                if copy == 0:
                    self._scores_back[:] = back
                tried.append(self._head_errors(copy + 1))
            errors = torch.stack(tried).unflatten(0, (width, -1))  # (back, memory, head)
            best, memory_of = errors.min(1)
            back_of = best.argmin(0)
            if copy == 0:  # heads of a group share B and C, which look as far back as the values
                self._scores_back = best.unflatten(1, (self._sizes.n_groups, -1)).sum(-1).argmin(0)
                back_of = self._scores_back.repeat_interleave(self._heads // self._sizes.n_groups)
            self._back[:, copy:] = back_of[:, None]
            self._memory[:, copy:] = memories[memory_of[back_of, every]][:, None]
            if copy == 0:
                self._choose_scales()
        self._apply()

    def solve_output(self) -> float:
        """Fit the output projection; return its error on text that was held out of the fit."""
        moments, held_out = _Moments(intercept=self._sizes.proj_bias), []
        for place, sample in enumerate(self._samples):
            unseen, features = self._held_out(place), self._features(place)
            moments.add(features[~unseen].flatten(0, 1), sample.output[~unseen].flatten(0, 1))
            held_out.append((features[unseen].flatten(0, 1), sample.output[unseen].flatten(0, 1)))
        features, output = (torch.cat(parts) for parts in zip(*held_out, strict=True))
        errors = {}
        for penalty in _PENALTIES:
            self._set_output(moments.solve(penalty))
            wrong = (self._mixer.out_proj(features) - output).double().square().sum()
            errors[penalty] = float(wrong / output.double().square().sum().clamp(min=1e-300))
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
        tried = []
        for scale in _SCALES:
            self._scale[:] = scale
            tried.append(self._head_errors(1).unflatten(0, (self._sizes.n_groups, -1)).sum(-1))
        scales = torch.tensor(_SCALES, device=self._scale.device)
        self._scale = scales[torch.stack(tried).argmin(0)]

    def _head_errors(self, copies: int) -> torch.Tensor:
        """Return ``(heads,)``: what a linear map from the first copies' features leaves over.

        Measured where it counts, behind the attention's output projection.
        """
        self._apply()
        moments = _Moments()
        for place, target in enumerate(self._targets):
            rows = ~self._held_out(place)
            split = (self._heads, self._copies, -1)
            features = self._features(place).unflatten(-1, split)[..., :copies, :].flatten(-2)
            moments.add(features[rows].flatten(0, 1).transpose(0, 1), target)
        left = moments.left_over(moments.solve(_HEAD_PENALTY), self._target_power)
        return (left * self._importance).sum((1, 2))

    def _apply(self) -> None:
        """Write the choices into the block's convolution and decay."""
        sizes = self._sizes
        filters = torch.zeros_like(self._mixer.conv1d.weight[:, 0])
        values, keys, queries = filters.split(
            (sizes.d_inner, sizes.n_groups * sizes.d_state, sizes.n_groups * sizes.d_state)
        )
        newest = sizes.conv_kernel - 1
        back = self._back.flatten().repeat_interleave(sizes.head_dim)
        values.scatter_(1, (newest - back)[:, None], self._gain)
        back = self._scores_back.repeat_interleave(sizes.d_state)
        scale = self._scale.repeat_interleave(sizes.d_state)
        keys.scatter_(1, (newest - back)[:, None], scale[:, None])
        queries[:, newest] = scale
        self._mixer.conv1d.weight.copy_(filters[:, None])
        self._mixer.A_log.copy_(-torch.log(self._memory * self._step).flatten())

    def _features(self, place: int) -> torch.Tensor:
        return self._mixer.features(self._projected[place], self._samples[place].context)

    def _held_out(self, place: int) -> torch.Tensor:
        """Say which rows of a sample are for judging, not for fitting; one at least of all."""
        before = sum(len(sample.input) for sample in self._samples[:place])
        rows = torch.arange(before, before + len(self._samples[place].input))
        return (rows % _HELD_OUT == 1).to(self._samples[place].input.device)


class _Moments:
    """Sums over tokens from which regressions follow, in float64.

    Everything may have a leading dimension, one regression each.

    Args:
        intercept: whether the regressions have one.
    """

    def __init__(self, *, intercept: bool = True) -> None:
        self._more = int(intercept)
        self._xx: torch.Tensor | float = 0.0
        self._xy: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in features ``(…, tokens, n)`` and targets ``(…, tokens, m)``."""
        x = nn.functional.pad(x.double(), (0, self._more), value=1.0)
        self._xx = self._xx + x.mT @ x
        self._xy = self._xy + x.mT @ y.double()

    def solve(self, penalty: float) -> torch.Tensor:
        """Return the ridge regression ``(…, n, m)``; the intercept, if any, is one more row."""
        assert isinstance(self._xx, torch.Tensor)
        assert isinstance(self._xy, torch.Tensor)
        diagonal = self._xx.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal[..., : diagonal.shape[-1] - self._more]
        ridge = (penalty * diagonal.mean(-1, keepdim=True)).expand_as(diagonal)
        ridge = nn.functional.pad(ridge, (0, self._more))  # the intercept is free
        factor = torch.linalg.cholesky(self._xx + torch.diag_embed(ridge))
        return torch.cholesky_solve(self._xy, factor)

    def left_over(self, solution: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum over tokens of the error's outer product, ``(…, m, m)``.

        Args:
            solution: see `solve`.
            targets: the same sum of the targets themselves.
        """
        cross = solution.mT @ self._xy
        return targets - cross - cross.mT + solution.mT @ self._xx @ solution


def new_mixer(
    config: HybridConfig,
    sizes: MambaSizes,
    index: int,
    values: dict[str, torch.Tensor],
    device: torch.device,
) -> Mamba2:
    """Return a Mamba-2 block of the given sizes and values, in float32, not for training."""
    return materialize(lambda: Mamba2(config, sizes, index), values.__getitem__, device)
