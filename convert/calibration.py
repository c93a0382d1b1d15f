"""Calibration: fit new Mamba-2 blocks to the attention blocks that they replace, in closed form.

The fit uses the teacher's activations on some text. It takes no gradient steps:

1. Each head chooses how many tokens its convolution looks back, how long its memory is, and how
   strongly its scores depend on content; see `hybridize.conversion.head_trials`.
2. Then the output projection of the block, with its bias if it has one, is the ridge regression of
   the attention's output on the block's features (Hoerl & Kennard 1970). The normal equations are
   summed in float64, batch by batch.

Blocks without projection biases, which llama.cpp requires, get one more regression first. It fits
w such that w·x ≈ 1 for all inputs x of the block. The gate's weights are then a multiple of w, so
that the gate stays open without a bias; the output norm removes the remaining variation.
"""

import time
from collections.abc import Iterator
from functools import partial

import torch

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.tensors import Tensors
from hybridize.conversion.block_fit import Batch, BlockFit
from hybridize.conversion.measurements import BlockError, CalibrationCost
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.materialize import materialize
from hybridize.modeling.model_spec import ModelSpec

_TOKENS_PER_BATCH = 2048
_HELD_OUT_EVERY = 8
"""One sequence in this many is held out of the fits."""


class Calibrator:
    """Fits new blocks to the teacher's activations, with one block in memory at a time.

    Fit the blocks in the order of the layout: the text runs through the model once.

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
        self._batches = _batches(dataset)
        self._next = 0  # the block whose inputs are in _stream
        self._stream: list[torch.Tensor] = []
        self._remembered: dict[int, dict[str, torch.Tensor]] | None = {} if remember else None
        self._errors: dict[int, BlockError] = {}
        self._seconds = self._teacher_seconds = 0.0
        self._advanced = 0  # blocks of the teacher that the text ran through

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """The errors of all fitted blocks, in the order of the layout."""
        return tuple(error for _, error in sorted(self._errors.items()))

    @property
    def cost(self) -> CalibrationCost:
        """What the fits so far have cost."""
        if not self._advanced:
            return CalibrationCost(None, self._seconds)
        forward = self._teacher_seconds / self._advanced * len(self._teacher.config.blocks)
        return CalibrationCost(self._seconds / forward, self._seconds)

    @torch.no_grad()
    def fit(
        self, index: int, sizes: MambaSizes, start: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the fitted values of a new block.

        Args:
            index: the block's index in the layout.
            sizes: the new block's sizes.
            start: its first values, as `first_values.attention_values` returns them.

        Raises:
            ValueError: a later block has been fitted already.
        """
        if self._remembered is not None and index in self._remembered:
            return self._remembered[index]
        started = time.perf_counter()
        self._advance(index)
        block = self._teacher.block(index)
        assert isinstance(block.mixer, Attention)
        mixer = new_mixer(self._teacher.config, sizes, index, start, self.device)
        fitted, held_out = (partial(self._text, block.norm, part) for part in (False, True))
        before, after = BlockFit(mixer, block.mixer, fitted, held_out).run()
        self._errors[index] = BlockError(index, before, after)
        values = {name: value.cpu() for name, value in mixer.state_dict().items()}
        if self._remembered is not None:
            self._remembered[index] = values
        self._seconds += time.perf_counter() - started
        return values

    def _advance(self, index: int) -> None:
        """Run the text through the teacher up to the given block."""
        if index < self._next:
            raise ValueError(f"block {index} is before block {self._next}; fit blocks in order")
        if not self._stream:
            self._stream = [
                self._teacher.embed(self.dataset.sequences(indices)[0])
                for indices, _ in self._batches
            ]
        for earlier in range(self._next, index):
            block = self._teacher.block(earlier)
            self._wait()
            started = time.perf_counter()
            for i, context in enumerate(self._contexts()):
                self._stream[i] = block(self._stream[i], context)
            self._wait()
            self._teacher_seconds += time.perf_counter() - started
            self._advanced += 1
        self._next = index

    def _wait(self) -> None:
        """Wait for the device, which may still compute when a call returns."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _text(self, norm: RMSNorm, held_out: bool) -> Iterator[Batch]:
        """Return what the current block sees of the fitted or of the held-out text."""
        for x, context, (_, is_held_out) in zip(
            self._stream, self._contexts(), self._batches, strict=True
        ):
            if is_held_out == held_out:
                yield Batch(norm(x), context)

    def _contexts(self) -> Iterator[BlockContext]:
        for x, (indices, _) in zip(self._stream, self._batches, strict=True):
            yield self._teacher.context(x, self.dataset.sequences(indices)[1].to(x.device))


def _batches(dataset: PackedDataset) -> list[tuple[torch.Tensor, bool]]:
    """Return the indices of the sequences of each batch, and whether the batch is held out."""
    indices, size = torch.arange(len(dataset)), max(1, _TOKENS_PER_BATCH // dataset.length)
    held_out = indices % _HELD_OUT_EVERY == 1
    return [
        (batch, part) for part in (False, True) for batch in indices[held_out == part].split(size)
    ]


def new_mixer(
    config: HybridConfig,
    sizes: MambaSizes,
    index: int,
    values: dict[str, torch.Tensor],
    device: torch.device,
) -> Mamba2:
    """Return a Mamba-2 mixer with the given sizes and values, in float32 and without gradients."""
    return materialize(lambda: Mamba2(config, sizes, index), values.__getitem__, device)
