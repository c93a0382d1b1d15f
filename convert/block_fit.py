"""The fit of one new Mamba-2 block to the attention block that it replaces, in closed form."""

from dataclasses import dataclass, replace

import torch

from hybridize.checkpoints.formats.stock_hybrid import pad_heads
from hybridize.checkpoints.padding import pad_projection
from hybridize.conversion.first_values import UNIT_GATE
from hybridize.conversion.head_trials import HeadTarget, HeadTrials
from hybridize.conversion.moments import Moments
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2

# Penalties of the ridge regressions, in units of the features' mean square.
_GATE_PENALTY = 1e-4
_OUTPUT_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The one with the smallest error on held-out text is used."""

_HELD_OUT_EVERY = 8
"""One sequence in this many is held out of the fit."""

_CHOICE_TOKENS = 2048
"""The heads' lags, memories and scales are chosen on about this many tokens."""


@dataclass(frozen=True)
class Sample:
    """A batch of text, as one block sees it.

    Attributes:
        input: ``(batch, length, hidden)``, the input of the block, after the norm.
        heads: ``(batch, length, heads × head_dim)``, the output of each attention head.
        output: ``(batch, length, hidden)``, the output of the attention block.
        context: masks, RoPE angles and packed sequences of the batch.
    """

    input: torch.Tensor
    heads: torch.Tensor
    output: torch.Tensor
    context: BlockContext

    @staticmethod
    def of(x: torch.Tensor, attention: Attention, context: BlockContext) -> "Sample":
        """Return the sample of an attention block, given its input after the norm."""
        heads = attention.heads(x, context)
        return Sample(x, heads, attention.o_proj(heads), context)

    def rows(self, mask: torch.Tensor) -> "Sample":
        """Return the sequences that ``mask``, ``(batch,)``, selects."""
        mask, seq_idx = mask.to(self.input.device), self.context.seq_idx
        context = replace(self.context, seq_idx=None if seq_idx is None else seq_idx[mask])
        return Sample(self.input[mask], self.heads[mask], self.output[mask], context)


class BlockFit:
    """Fits one new block to the attention block that it replaces.

    Args:
        mixer: the new block, with its first values. It is changed.
        attention: the attention block.
        samples: all text, in the order of its sequences.
    """

    def __init__(self, mixer: Mamba2, attention: Attention, samples: list[Sample]) -> None:
        self._mixer, self._attention = mixer, attention
        counts = torch.tensor([len(sample.input) for sample in samples])
        indices = torch.arange(int(counts.sum()))
        masks = (indices % _HELD_OUT_EVERY == 1).split(counts.tolist())
        self._fitted = [sample.rows(~mask) for sample, mask in zip(samples, masks, strict=True)]
        self._held_out = [
            sample.rows(mask) for sample, mask in zip(samples, masks, strict=True) if mask.any()
        ]

    def run(self) -> tuple[float, float]:
        """Fit the block; return its error on held-out text before and after, as in `BlockError`."""
        if not self._mixer.sizes.proj_bias:
            self._open_gate()
        before = self._error()
        self._choose_heads()
        return before, self._solve_output()

    def _open_gate(self) -> None:
        """Set the gate's weights such that the gate is open for every token."""
        moments = Moments(intercept=False)
        for sample in self._fitted:
            x = sample.input.flatten(0, 1)
            moments.add(x, torch.ones_like(x[:, :1]))
        direction = moments.solve(_GATE_PENALTY).T
        self._mixer.in_proj.weight[: self._mixer.sizes.d_inner] = UNIT_GATE * direction

    def _error(self) -> float:
        squared_error = power = 0.0
        for sample in self._held_out:
            got = self._mixer(sample.input, sample.context)
            squared_error += float((got - sample.output).double().square().sum())
            power += float(sample.output.double().square().sum())
        return squared_error / power if power else 0.0

    def _choose_heads(self) -> None:
        """Choose the lag and the memory of each head, and the scale of each group."""
        sizes, o_proj = self._attention.sizes, self._attention.o_proj
        padded = pad_heads(sizes, o_proj.out_features)

        def per_head(values: torch.Tensor) -> torch.Tensor:
            values = pad_projection("o_proj", values, sizes, padded)
            return values.unflatten(1, (padded.num_heads, -1)).transpose(0, 1).double()

        targets, tokens = [], 0
        for sample in self._fitted:
            count = -(-(_CHOICE_TOKENS - tokens) // sample.input.shape[1])
            if count <= 0:
                break
            part = sample.rows(torch.arange(len(sample.input)) < count)
            projected = self._mixer.in_proj(part.input)
            targets.append(HeadTarget(projected, per_head(part.heads.flatten(0, 1)), part.context))
            tokens += part.input.shape[0] * part.input.shape[1]
        weight = per_head(o_proj.weight)
        HeadTrials(self._mixer, targets, weight.mT @ weight).choose()

    def _solve_output(self) -> float:
        """Fit the output projection, and return the block's error on held-out text.

        The penalty with the smallest error on the held-out text is used. The returned error is that
        one, measured before the held-out text is added to the fit.
        """
        moments = Moments(intercept=self._mixer.sizes.proj_bias)
        for sample in self._fitted:
            moments.add(self._features(sample), sample.output.flatten(0, 1))
        features = torch.cat([self._features(sample) for sample in self._held_out])
        output = torch.cat([sample.output.flatten(0, 1) for sample in self._held_out])
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

    def _features(self, sample: Sample) -> torch.Tensor:
        """Return the inputs of the output projection, ``(tokens, d_inner)``."""
        projected = self._mixer.in_proj(sample.input)
        return self._mixer.features(projected, sample.context).flatten(0, 1)

    def _set_output(self, solution: torch.Tensor) -> None:
        width = self._mixer.sizes.d_inner
        self._mixer.out_proj.weight.copy_(solution[:width].T)
        if self._mixer.sizes.proj_bias:
            self._mixer.out_proj.bias.copy_(solution[width])
