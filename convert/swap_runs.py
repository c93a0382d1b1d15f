"""Swaps of attention blocks in a model, each measured by one run from the swapped block on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from hybridize.conversion.lazy_greedy import Runs
from hybridize.data.kl import KLProbe
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.model import HybridForCausalLM

_MEMORY = 1 << 29
"""Bytes for the inputs of blocks, from which runs start."""


@dataclass(frozen=True)
class Batch:
    """Some sequences of one kind of text.

    Attributes:
        kind: the kind, such as ``"plain"``.
        ids, seq_idx, labels: ``(sequences, length)``, see `KLProbe`.
    """

    kind: str
    ids: torch.Tensor
    seq_idx: torch.Tensor
    labels: torch.Tensor | None = None

    def parts(self, count: int) -> "list[Batch]":
        """Split the sequences into parts, as equal as possible."""
        fields = [self.ids, self.seq_idx] + ([] if self.labels is None else [self.labels])
        split = zip(*(field.tensor_split(count) for field in fields), strict=True)
        return [Batch(self.kind, *part) for part in split]


class SwapRuns(Runs):
    """Swaps attention blocks of a model and measures what this costs.

    A run starts at the swapped block, from the input that the block has in the current model. It
    also gives the inputs of all later blocks in the model with the swap, so that accepting a swap
    that was measured on the whole text costs nothing more. If the inputs of all attention blocks
    need too much memory, some are not kept; runs then start at an earlier block.

    Args:
        model: the model, in float32. Its mixers are changed; `restore` puts the attention back.
        mixers: the new mixer of each attention block, by the block's index in the layout.
        parts: the text, in parts.
        weights: for each kind of text, the weight of its mean loss in the loss that the selection
            minimizes. Text with weight 0 is only measured with swaps that are accepted.
        memory: maximum number of bytes for the inputs of blocks.

    Attributes:
        runs: number of runs over the text, from the swapped block on.
        forwards: what was computed, in forward passes of the whole model over the text.
        means: for each kind of text, the rise of the mean loss with all accepted swaps.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        mixers: Mapping[int, Mamba2],
        parts: Sequence[Sequence[Batch]],
        weights: Mapping[str, float],
        memory: int = _MEMORY,
    ) -> None:
        self._blocks, self._mixers, self._weights = model.model.blocks, mixers, weights
        self._attention = {index: self._blocks[index].mixer for index in mixers}
        self._tokens = sum(batch.ids.numel() for part in parts for batch in part)
        nbytes = 2 * self._tokens * model.config.hidden_size * 4
        self._starts = _starts(sorted(mixers), nbytes, memory)
        self._texts = [
            [_Text(model, batch, self._starts, self._tokens) for batch in part] for part in parts
        ]
        self.shares = [
            sum(text.share for text in part if weights[text.kind]) for part in self._texts
        ]
        self.runs, self.forwards = 0.0, 1.0
        self.means = dict.fromkeys(weights, 0.0)

    @override
    def measure(self, candidate: int, part: int) -> torch.Tensor:
        for text in self._texts[part]:
            if self._weights[text.kind]:
                self._run(candidate, text)
        return self._losses(candidate, part)

    @override
    def missing(self, candidate: int) -> float:
        texts = (text for part in self._texts for text in part)
        return sum(text.share for text in texts if candidate not in text.measured)

    @override
    def drop(self, candidate: int) -> None:
        for part in self._texts:
            for text in part:
                text.measured.pop(candidate, None)

    @override
    def accept(self, candidate: int) -> list[torch.Tensor]:
        losses: dict[str, list[torch.Tensor]] = {kind: [] for kind in self.means}
        for part in self._texts:
            for text in part:
                if candidate not in text.measured:
                    self._run(candidate, text)
                losses[text.kind].append(text.measured[candidate][0])
        self.means = {kind: float(torch.cat(found).mean()) for kind, found in losses.items()}
        weighted = [self._losses(candidate, part) for part in range(len(self._texts))]
        for part in self._texts:
            for text in part:
                text.inputs.update(text.measured[candidate][1])
                text.measured.clear()  # the others are measurements of an earlier model
        self._blocks[candidate].mixer = self._mixers[candidate]
        return weighted

    def restore(self) -> None:
        """Put the attention back into the model."""
        for index, mixer in self._attention.items():
            self._blocks[index].mixer = mixer

    def _run(self, candidate: int, text: "_Text") -> None:
        """Measure a swap on one batch of text."""
        start = max(index for index in self._starts if index <= candidate)
        later = [index for index in self._starts if index > candidate]
        self._blocks[candidate].mixer = self._mixers[candidate]
        try:
            text.measured[candidate] = text.probe.measure(text.inputs[start], start, later)
        finally:
            self._blocks[candidate].mixer = self._attention[candidate]
        self.runs += text.share
        self.forwards += text.share * (1 - start / len(self._blocks))

    def _losses(self, candidate: int, part: int) -> torch.Tensor:
        """Return losses whose mean is the weighted sum of the mean losses of all kinds."""
        kinds: dict[str, list[torch.Tensor]] = {}
        for text in self._texts[part]:
            if self._weights[text.kind]:
                kinds.setdefault(text.kind, []).append(text.measured[candidate][0])
        losses = {kind: torch.cat(found) for kind, found in kinds.items()}
        total = sum(len(found) for found in losses.values())
        return torch.cat(
            [found * (self._weights[kind] * total / len(found)) for kind, found in losses.items()]
        )


class _Text:
    """A batch of text, and what was measured on it.

    Args:
        model: the unchanged model.
        batch: the text.
        starts: the blocks at which runs start.
        tokens: number of tokens in all batches.

    Attributes:
        kind: the batch's kind.
        share: its share of all tokens.
        inputs: the input of each block in ``starts`` in the current model.
        measured: by candidate, the losses, and the inputs of later blocks in ``starts``.
    """

    def __init__(
        self, model: HybridForCausalLM, batch: Batch, starts: Sequence[int], tokens: int
    ) -> None:
        self.probe = KLProbe(model, batch.ids, batch.seq_idx, batch.labels, starts)
        self.kind, self.share = batch.kind, batch.ids.numel() / tokens
        self.inputs = self.probe.inputs
        self.measured: dict[int, tuple[torch.Tensor, dict[int, torch.Tensor]]] = {}


def _starts(indices: list[int], nbytes: int, memory: int) -> list[int]:
    """Return the blocks whose inputs are kept: every k-th one, with the smallest k that fits.

    Args:
        indices: the attention blocks.
        nbytes: size of one block's inputs, in the current model and in the best candidate.
        memory: maximum number of bytes for all of them.
    """
    return indices[:: max(1, -(-nbytes * len(indices) // memory))]
