"""The fit of one new Mamba-2 block to the attention block that it replaces, in closed form."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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

_CHOICE_TOKENS = 1024
"""The heads' lags, memories and scales are chosen on about this many tokens."""


@dataclass(frozen=True)
class Batch:
    """A batch of text, as one attention block sees it.

    Attributes:
        input: ``(batch, length, hidden)``, after the norm.
        context: masks, RoPE angles and packed sequences of the batch.
    """

    input: torch.Tensor
    context: BlockContext


Batches = Callable[[], Iterable[Batch]]
"""Returns the batches of a text. They are made one at a time, so that few are in memory."""


class BlockFit:
    """Fits one new block to the attention block that it replaces.

    Args:
        mixer: the new block, with its first values. It is changed.
        attention: the attention block.
        fitted: the text to fit.
        held_out: other text, on which the error is measured.
    """

    def __init__(
        self, mixer: Mamba2, attention: Attention, fitted: Batches, held_out: Batches
    ) -> None:
        self._mixer, self._attention = mixer, attention
        self._fitted, self._held_out = fitted, held_out

    def run(self) -> tuple[float, float]:
        """Fit the block; return its error on held-out text before and after, as in `BlockError`.

        If the fit does not reduce the error, the block keeps its first values. This can happen with
        little text.
        """
        if not self._mixer.sizes.proj_bias:
            self._open_gate()
        before = self._error()
        first = {name: value.clone() for name, value in self._mixer.state_dict().items()}
        self._choose_heads()
        after = self._solve_output()
        if after < before:
            return before, after
        self._mixer.load_state_dict(first)
        return before, before

    def _open_gate(self) -> None:
        """Set the gate's weights such that the gate is open for every token."""
        moments = Moments(intercept=False)
        for batch in self._fitted():
            x = batch.input.flatten(0, 1)
            moments.add(x, torch.ones_like(x[:, :1]))
        direction = moments.solve(_GATE_PENALTY).T
        self._mixer.in_proj.weight[: self._mixer.sizes.d_inner] = UNIT_GATE * direction

    def _error(self) -> float:
        squared_error = power = 0.0
        for batch in self._held_out():
            want = self._attention(batch.input, batch.context)
            got = self._mixer(batch.input, batch.context)
            squared_error += float((got - want).double().square().sum())
            power += float(want.double().square().sum())
        return squared_error / power if power else 0.0

    def _choose_heads(self) -> None:
        """Choose the lag and the memory of each head, and the scale of each group."""
        sizes, o_proj = self._attention.sizes, self._attention.o_proj
        padded = pad_heads(sizes, o_proj.out_features)

        def per_head(values: torch.Tensor) -> torch.Tensor:
            values = pad_projection("o_proj", values, sizes, padded)
            return values.unflatten(1, (padded.num_heads, -1)).transpose(0, 1)

        targets, tokens = [], 0
        for batch in self._fitted():
            heads = self._attention.heads(batch.input, batch.context)
            projected = self._mixer.in_proj(batch.input)
            length = heads.shape[1]
            for row in range(min(len(heads), -(-(_CHOICE_TOKENS - tokens) // length))):
                seq_idx = batch.context.seq_idx
                targets.append(
                    HeadTarget(
                        projected[row : row + 1],
                        per_head(heads[row]),
                        None if seq_idx is None else seq_idx[row : row + 1],
                    )
                )
                tokens += length
            if tokens >= _CHOICE_TOKENS:
                break
        weight = per_head(o_proj.weight).double()
        HeadTrials(self._mixer, targets, weight.mT @ weight).choose()

    def _solve_output(self) -> float:
        """Fit the output projection, and return the block's error on held-out text.

        The penalty with the smallest error on the held-out text is used. The returned error is that
        one, measured before the held-out text is added to the fit.
        """
        fitted, held_out = self._moments(self._fitted), self._moments(self._held_out)
        power = held_out.power().clamp(min=1e-300)
        errors = {}
        for penalty in _OUTPUT_PENALTIES:
            error = held_out.error(fitted.solve(penalty)).diagonal().sum()
            errors[penalty] = float((error / power).clamp(min=0))
        penalty = min(errors, key=errors.__getitem__)
        solution, width = (fitted + held_out).solve(penalty), self._mixer.sizes.d_inner
        self._mixer.out_proj.weight.copy_(solution[:width].T)
        if self._mixer.sizes.proj_bias:
            self._mixer.out_proj.bias.copy_(solution[width])
        return errors[penalty]

    def _moments(self, batches: Batches) -> Moments:
        """Return the sums for the regression of the attention's output on the block's features."""
        moments = Moments(intercept=self._mixer.sizes.proj_bias)
        for batch in batches():
            features = self._mixer.features(self._mixer.in_proj(batch.input), batch.context)
            output = self._attention(batch.input, batch.context)
            moments.add(features.flatten(0, 1), output.flatten(0, 1))
        return moments
