"""Choosing which attention blocks to keep by what losing each costs.

Greedy: of all attention blocks that are left, the one goes whose swap raises the KL divergence
from the teacher's next-token distribution the least, and all are measured again. What a swap
costs depends on which others are gone, so one measurement of each would not do.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.conversion.calibration import new_mixer
from hybridize.conversion.first_values import NewValues
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.data.kl import kl_probes
from hybridize.data.packing import PackedDataset
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import AttentionSizes
from hybridize.modeling.model import HybridForCausalLM


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
    dataset: PackedDataset,
    device: torch.device,
) -> Curve:
    """Make a block for every attention block, and measure what each swap costs.

    Args:
        source: the teacher's directory; the whole model is loaded, in float32.
        mamba: sizes of the new blocks.
        new_values: makes them.
        dataset: the text to measure on.
        device: where to measure.
    """
    teacher = load_model(source, dtype=torch.float32, device=device)
    config, mixers = teacher.config, {}
    for index, attention in enumerate(config.blocks):
        if isinstance(attention, AttentionSizes):
            sizes = mamba_sizes(attention, config.hidden_size, mamba)
            values = new_values(index, sizes)
            mixers[index] = new_mixer(config, sizes, index, values, device)
    return sensitivity_curve(teacher, mixers, dataset)


@torch.no_grad()
def sensitivity_curve(
    teacher: HybridForCausalLM, mixers: dict[int, Mamba2], dataset: PackedDataset
) -> Curve:
    """Swap one attention block after the other, always the one that costs the least.

    Args:
        teacher: the model; its attention blocks are as they were when this returns.
        mixers: for each attention block, by its place in the layout, the block to take over.
        dataset: the text to measure on.

    Returns:
        The curve. It takes about half as many runs of the model as there are pairs of blocks.
    """
    blocks, places = teacher.model.blocks, sorted(mixers)
    attention = {place: blocks[place].mixer for place in places}
    batches = list(kl_probes(teacher, dataset))
    left, points = list(places), [Point(tuple(range(len(places))), 0.0)]
    runs = len(batches) * len(places) * (len(places) + 1) // 2
    try:
        with console.progress("measuring swaps", runs, "runs") as progress:
            while left:
                costs = dict.fromkeys(left, 0.0)
                for batch in batches:
                    for place, x in batch.block_inputs(left):
                        blocks[place].mixer = mixers[place]
                        costs[place] += batch.kl(x, place) * batch.num_sequences / len(dataset)
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
