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

import torch

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.tensors import Tensors
from hybridize.conversion.block_fit import BlockFit, Sample
from hybridize.conversion.measurements import BlockError, CalibrationCost
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.materialize import materialize
from hybridize.modeling.model_spec import ModelSpec

_TOKENS_PER_BATCH = 2048


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
        self._seconds = self._advance_seconds = 0.0
        self._advanced = 0  # blocks of the teacher that the text ran through

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """The errors of all fitted blocks, in the order of the layout."""
        return tuple(error for _, error in sorted(self._errors.items()))

    @property
    def cost(self) -> CalibrationCost:
        """What the fits so far have cost."""
        forward = self._advance_seconds / max(1, self._advanced) * len(self._teacher.config.blocks)
        return CalibrationCost(self._seconds / forward if forward else 0.0, self._seconds)

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
        started = time.perf_counter()
        self._advance(index)
        block = self._teacher.block(index)
        assert isinstance(block.mixer, Attention)
        samples = [
            Sample.of(block.norm(x), block.mixer, context)
            for x, context in zip(self._stream, self._contexts(), strict=True)
        ]
        mixer = new_mixer(self._teacher.config, sizes, index, start, self.device)
        before, after = BlockFit(mixer, block.mixer, samples).run()
        self._errors[index] = BlockError(index, before, after)
        values = {name: value.cpu() for name, value in mixer.state_dict().items()}
        if self._remembered is not None:
            self._remembered[index] = values
        self._seconds += time.perf_counter() - started
        return values

    def _advance(self, index: int) -> None:
        """Run the text through the teacher up to the given block."""
        if not self._stream or index < self._next:
            ids = [self.dataset.sequences(indices)[0] for indices in self._batches()]
            self._stream = [self._teacher.embed(batch) for batch in ids]
            self._next = 0
        started = time.perf_counter()
        for earlier in range(self._next, index):
            block = self._teacher.block(earlier)
            self._stream = [
                block(x, context) for x, context in zip(self._stream, self._contexts(), strict=True)
            ]
        self._advanced += index - self._next
        self._advance_seconds += time.perf_counter() - started
        self._next = index

    def _batches(self) -> tuple[torch.Tensor, ...]:
        """Return the indices of the sequences of each batch."""
        return torch.arange(len(self.dataset)).split(self._batch_size)

    def _contexts(self) -> Iterator[BlockContext]:
        for indices, x in zip(self._batches(), self._stream, strict=True):
            yield self._teacher.context(x, self.dataset.sequences(indices)[1].to(x.device))


def new_mixer(
    config: HybridConfig,
    sizes: MambaSizes,
    index: int,
    values: dict[str, torch.Tensor],
    device: torch.device,
) -> Mamba2:
    """Return a Mamba-2 mixer with the given sizes and values, in float32 and without gradients."""
    return materialize(lambda: Mamba2(config, sizes, index), values.__getitem__, device)
