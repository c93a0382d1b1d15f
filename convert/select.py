"""Choosing which attention blocks to keep by what losing each costs.

Greedy: of all attention blocks that are left, the one goes whose swap raises the KL divergence
from the teacher's next-token distribution the least, and all are measured again. What a swap
costs depends on which others are gone, so one measurement of each would not do.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.console import console
from hybridize.convert.calibrate import new_mixer
from hybridize.convert.initialise import NewValues
from hybridize.convert.plan import MambaChoice, mamba_sizes
from hybridize.kernels import linear_kl_divergence
from hybridize.modeling.blocks.mamba2 import Mamba2
from hybridize.modeling.blocks.sizes import AttentionSizes
from hybridize.modeling.data.windows import Windows
from hybridize.modeling.load import load_model
from hybridize.modeling.model import HybridForCausalLM

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Point:
    """One model on the way from all attention to none.

    Attributes:
        kept: attention blocks, counted among the model's attention blocks from 0.
        kl: divergence from the teacher, in nats per token.
    """

    kept: tuple[int, ...]
    kl: float


@dataclass(frozen=True)
class Curve:
    """What is lost with every attention block that goes.

    Attributes:
        points: from all blocks kept to none.
    """

    points: tuple[Point, ...]

    def keep(self, count: int, keep: int) -> tuple[int, ...]:
        """Return which ``keep`` of ``count`` attention blocks stay."""
        return next(p.kept for p in self.points if len(p.kept) == min(keep, count))


def measure_swaps(
    source: Path,
    mamba: MambaChoice,
    new_values: NewValues,
    windows: Windows,
    device: torch.device,
) -> Curve:
    """Make a block for every attention block, and measure what each swap costs.

    Args:
        source: the teacher's directory; the whole model is loaded, in float32.
        mamba: sizes of the new blocks.
        new_values: makes them.
        windows: the text to measure on.
        device: where to measure.
    """
    teacher = load_model(source, dtype=torch.float32, device=device)
    config, mixers = teacher.config, {}
    for index, attention in enumerate(config.blocks):
        if isinstance(attention, AttentionSizes):
            sizes = mamba_sizes(attention, config.hidden_size, mamba)
            values = new_values(index, sizes)
            mixers[index] = new_mixer(config, sizes, index, values, device)
    return sensitivity_curve(teacher, mixers, windows)


@torch.no_grad()
def sensitivity_curve(
    teacher: HybridForCausalLM, mixers: dict[int, Mamba2], windows: Windows
) -> Curve:
    """Swap one attention block after the other, always the one that costs the least.

    Args:
        teacher: the model; its attention blocks are as they were when this returns.
        mixers: for each attention block, by its place in the layout, the block to take over.
        windows: the text to measure on.

    Returns:
        The curve. It takes about half as many runs of the model as there are pairs of blocks.
    """
    blocks, places = teacher.model.blocks, sorted(mixers)
    attention = {place: blocks[place].mixer for place in places}
    batches = [_Batch(teacher, *windows.rows(rows)) for rows in _split(windows)]
    left, points = list(places), [Point(tuple(range(len(places))), 0.0)]
    runs = len(batches) * len(places) * (len(places) + 1) // 2
    try:
        with console.progress("measuring swaps", runs, "runs") as progress:
            while left:
                costs = dict.fromkeys(left, 0.0)
                for batch in batches:
                    for place, x in batch.inputs(left):
                        blocks[place].mixer = mixers[place]
                        costs[place] += batch.divergence(x, place) * batch.share(windows)
                        blocks[place].mixer = attention[place]
                        progress.advance()
                cheapest = min(costs, key=costs.__getitem__)
                blocks[cheapest].mixer = mixers[cheapest]
                left.remove(cheapest)
                kept = tuple(i for i, place in enumerate(places) if place in left)
                points.append(Point(kept, costs[cheapest]))
    finally:
        for place in places:
            blocks[place].mixer = attention[place]
    return Curve(tuple(points))


class _Batch:
    """Some text and what the teacher makes of it.

    Args:
        model: the teacher, with all of its attention.
        ids, seq_idx: ``(rows, length)``.
    """

    def __init__(self, model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor) -> None:
        self._model, self._rows = model, len(ids)
        self._embedded = model.model.embed_tokens(ids.to(model.device))
        self._embedded = self._embedded * model.config.embedding_multiplier
        self._context = model.model.block_context(self._embedded, seq_idx.to(model.device))
        self._wanted = self._run(self._embedded, 0)

    def inputs(self, places: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield what the blocks at some places see in the model as it is now."""
        x = self._embedded
        for place, block in enumerate(self._model.model.blocks[: places[-1] + 1]):
            if place in places:
                yield place, x
            x = block(x, self._context)

    def divergence(self, x: torch.Tensor, place: int) -> float:
        """Return the KL from the teacher of the model as it is now, given a block's input."""
        head = self._model.lm_head.weight
        scale = 1 / self._model.config.logits_scaling
        return float(
            linear_kl_divergence(
                self._run(x, place), head, self._wanted, head, scales=(scale, scale)
            )
        )

    def share(self, windows: Windows) -> float:
        """Return which part of the text this is."""
        return self._rows / len(windows)

    def _run(self, x: torch.Tensor, place: int) -> torch.Tensor:
        for block in self._model.model.blocks[place:]:
            x = block(x, self._context)
        return self._model.model.norm(x).flatten(0, 1)


def _split(windows: Windows) -> Iterable[torch.Tensor]:
    rows = max(1, _TOKENS_AT_ONCE // windows.length)
    return torch.arange(len(windows)).split(rows)
