"""Choose the attention blocks to keep, by measuring what their removal costs.

The selection swaps attention blocks for new blocks one by one, each time the one whose swap raises
a loss least (`lazy_greedy`). Two methods differ in the loss:

- ``sensitivity``: the KL divergence from the teacher's next-token distribution on plain text.
- ``recall``: the loss on tokens that must be retrieved from the text before them
  (`hybridize.data.retrieval_text`). Attention is kept where retrieval needs it, as in HALO
  (thunlp/hybrid-linear-attention) and FlashMorph (arXiv 2606.30562). The swaps are greedy, because
  several blocks can do the same retrieval: each looks unimportant while the others are there.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.conversion.calibration import new_mixer
from hybridize.conversion.converted_tensors import NewValues
from hybridize.conversion.lazy_greedy import lazy_greedy
from hybridize.conversion.measurements import CurvePoint, SelectionCost, SelectionCurve
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.conversion.retrieval import retrieval_texts
from hybridize.conversion.swap_runs import Batch, SwapRuns
from hybridize.data.packing import PackedDataset
from hybridize.data.retrieval_text import RetrievalText
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import AttentionSizes
from hybridize.modeling.model import HybridForCausalLM

PLAIN = "plain"
"""The kind of text on which the KL divergence is measured."""

_PARTS = 4
"""The text is measured in this many parts, or fewer if it has fewer sequences."""

_TOKENS_PER_BATCH = 4096


def measure_selection(
    source: Path,
    method: str,
    mamba: MambaChoice,
    new_values: NewValues,
    dataset: PackedDataset,
    device: torch.device,
    seed: int,
) -> SelectionCurve:
    """Make a new block for every attention block, and choose the order in which to swap them.

    Args:
        source: the teacher's directory. The whole model is loaded, in float32.
        method: ``"sensitivity"`` or ``"recall"``.
        mamba: sizes of the new blocks.
        new_values: makes the values of a new block.
        dataset: the text to measure on.
        device: where to measure.
        seed: random seed of the synthetic text.

    Raises:
        InputError: for ``"recall"``, the model retrieves nothing in any text.
    """
    teacher = load_model(source, dtype=torch.float32, device=device)
    config, mixers = teacher.config, {}
    for index, attention in enumerate(config.blocks):
        if isinstance(attention, AttentionSizes):
            sizes = mamba_sizes(attention, config.hidden_size, mamba)
            values = new_values(index, sizes)
            mixers[index] = new_mixer(config, sizes, index, values, device)
    if method == "sensitivity":
        return selection_curve(teacher, mixers, dataset)
    retrieval = retrieval_texts(teacher, source, dataset, seed)
    # The KL divergence is only reported: half of the text is enough.
    plain, _ = dataset.split(len(dataset) // 2)
    return selection_curve(teacher, mixers, plain, retrieval)


@torch.no_grad()
def selection_curve(
    teacher: HybridForCausalLM,
    mixers: Mapping[int, Mamba2],
    dataset: PackedDataset,
    retrieval: Mapping[str, RetrievalText] | None = None,
) -> SelectionCurve:
    """Swap the attention blocks one by one, and measure the model after each swap.

    Args:
        teacher: the model. Its attention blocks are put back at the end.
        mixers: the new mixer of each attention block, by the block's index in the layout.
        dataset: plain text.
        retrieval: text in which tokens must be retrieved, by kind. If it is given, the loss on
            these tokens decides, with the same weight for each kind; else the KL divergence.
    """
    started = time.perf_counter()
    ids, seq_idx = dataset.sequences(range(len(dataset)))
    batches = {PLAIN: Batch(PLAIN, ids, seq_idx)}
    weights = {PLAIN: float(not retrieval)}
    for kind, text in (retrieval or {}).items():
        batches[kind] = Batch(kind, text.ids, text.seq_idx, text.labels)
        weights[kind] = 1 / len(retrieval or ())
    count = min(_PARTS, *(len(batch.ids) for batch in batches.values()))
    parts = [
        [piece for batch in batches.values() for piece in _pieces(batch.parts(count)[number])]
        for number in range(count)
    ]
    indices, left = sorted(mixers), sorted(mixers)
    runs = SwapRuns(teacher, mixers, parts, weights)
    points = [_point(indices, left, runs.means)]
    try:
        with console.progress("measuring swaps", len(indices), "swaps") as progress:
            for swapped in lazy_greedy(runs, indices):
                left.remove(swapped)
                points.append(_point(indices, left, runs.means))
                progress.advance()
    finally:
        runs.restore()
    cost = SelectionCost(runs.runs, runs.forwards, time.perf_counter() - started)
    return SelectionCurve(tuple(points), cost)


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Split a batch of text into pieces that the model runs over at once."""
    sequences, length = batch.ids.shape
    return iter(batch.parts(-(-sequences // max(1, _TOKENS_PER_BATCH // length))))


def _point(indices: list[int], left: list[int], means: Mapping[str, float]) -> CurvePoint:
    kept = tuple(i for i, index in enumerate(indices) if index in left)
    recall = [rise for kind, rise in means.items() if kind != PLAIN]
    return CurvePoint(kept, means[PLAIN], sum(recall) / len(recall) if recall else None)
