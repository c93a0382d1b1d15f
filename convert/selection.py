"""Sensitivity selection: keep the attention blocks whose removal costs most.

The selection is greedy. Each round swaps every remaining attention block in turn, and measures the
KL divergence from the teacher's next-token distribution. The block with the smallest divergence is
swapped for good. All others are measured again in the next round, because the cost of a swap
depends on the blocks that were swapped before.
"""

from pathlib import Path

import torch

from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.conversion.calibration import new_mixer
from hybridize.conversion.converted_tensors import NewValues
from hybridize.conversion.measurements import CurvePoint, SensitivityCurve
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.data.kl import kl_probes
from hybridize.data.packing import PackedDataset
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import AttentionSizes
from hybridize.modeling.model import HybridForCausalLM


def measure_swaps(
    source: Path,
    mamba: MambaChoice,
    new_values: NewValues,
    dataset: PackedDataset,
    device: torch.device,
) -> SensitivityCurve:
    """Make a new block for every attention block, and measure the cost of each swap.

    Args:
        source: the teacher's directory. The whole model is loaded, in float32.
        mamba: sizes of the new blocks.
        new_values: makes the values of a new block.
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
) -> SensitivityCurve:
    """Swap the attention blocks one by one, the one with the smallest cost first.

    For n attention blocks, this computes as much as about n²/4 runs of the model over the text.

    Args:
        teacher: the model. Its attention blocks are put back at the end.
        mixers: the new mixer of each attention block, by the block's index in the layout.
        dataset: the text to measure on.
    """
    blocks, indices = teacher.model.blocks, sorted(mixers)
    attention = {index: blocks[index].mixer for index in indices}
    batches = list(kl_probes(teacher, dataset))
    left, points = list(indices), [CurvePoint(tuple(range(len(indices))), 0.0)]
    runs = len(batches) * len(indices) * (len(indices) + 1) // 2
    try:
        with console.progress("measuring swaps", runs, "runs") as progress:
            while left:
                costs = dict.fromkeys(left, 0.0)
                for batch in batches:
                    for index, x in batch.block_inputs(left):
                        blocks[index].mixer = mixers[index]
                        costs[index] += batch.kl(x, index) * batch.num_sequences / len(dataset)
                        blocks[index].mixer = attention[index]
                        progress.advance()
                cheapest = min(costs, key=costs.__getitem__)
                blocks[cheapest].mixer = mixers[cheapest]
                left.remove(cheapest)
                kept = tuple(i for i, index in enumerate(indices) if index in left)
                points.append(CurvePoint(kept, costs[cheapest]))
    finally:
        for index in indices:
            blocks[index].mixer = attention[index]
    return SensitivityCurve(tuple(points))
