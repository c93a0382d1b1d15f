"""Measuring what matters in a model, by forward passes over some text.

Units (channels, heads) are worth what they write to the residual stream: the power of their
activations times that of the weights that read them. It is zero where either is, and comparable
between units of a block. Blocks are worth the KL divergence that skipping them costs, as in
MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4.1), and next to it the angle by which they turn
the residual stream (Men et al. 2024, arXiv 2403.03853, equation 1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import Seen
from hybridize.compress.prune.scores import Scores
from hybridize.console import console
from hybridize.data.kl import index_batches, kl_probes
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.kernels import causal_conv1d
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.mlp import FeedForward

_OUTPUTS = {Attention: "o_proj", Mamba2: "out_proj", FeedForward: "down_proj"}


@torch.no_grad()
def measure(
    directory: Path,
    tensors: Tensors,
    config: HybridConfig,
    dataset: PackedDataset,
    device: torch.device,
    *,
    source: str,
    offload: bool = False,
) -> Scores:
    """Measure everything at once.

    Args:
        directory, tensors, config: the model.
        dataset: the text.
        device: where blocks run, in float32.
        source: a hash of the checkpoint, for the record.
        offload: hold one block in memory at a time; blocks are then judged by their influence
            alone, which takes the place of the divergence.
    """
    units = _Units(config)
    model = BlockwiseModel(tensors, config, device)
    batches = [dataset.sequences(indices) for indices in index_batches(dataset)]
    stream = [model.embed(ids) for ids, _ in batches]
    influence = []
    with console.progress("measuring blocks", len(config.blocks), "blocks") as progress:
        for place in range(len(config.blocks)):
            block, turned = model.block(place), 0.0
            for number, (x, (_, seq_idx)) in enumerate(zip(stream, batches, strict=True)):
                units.see_stream(place, x, block.norm(x))
                with units.watching(block.mixer):
                    after = block(x, model.context(x, seq_idx.to(device)))
                cosine = torch.nn.functional.cosine_similarity(x, after, dim=-1)
                turned += float((1 - cosine).sum()) / dataset.tokens
                stream[number] = after
            influence.append(turned)
            units.finish(place, block.mixer, dataset.tokens)
            progress.advance()
    norm = model.last_norm()
    for x in stream:
        units.see_stream(len(config.blocks), x, norm(x))
    turned_by = torch.tensor(influence)
    scores = Scores(
        units=units.scores(dataset.tokens),
        blocks=turned_by.clone() if offload else _skipped(directory, dataset, device),
        influence=turned_by,
        stream=(units.stream / dataset.tokens).float(),
        gated=units.gated,
        source=source,
        tokens=dataset.tokens,
    )
    if not (scores.blocks.isfinite().all() and scores.stream.isfinite().all()):
        raise InputError(
            f"{directory}: what it computes on the calibration text is not finite; check it with "
            "hybridize verify"
        )
    return scores


def _skipped(directory: Path, dataset: PackedDataset, device: torch.device) -> torch.Tensor:
    """Return the divergence that skipping each block costs, ``(blocks,)``."""
    model = load_model(directory, dtype=torch.float32, device=device)
    places = range(len(model.model.blocks))
    costs = torch.zeros(len(places))
    with console.progress("skipping blocks", len(places) * len(dataset), "runs") as progress:
        for probe in kl_probes(model, dataset):
            for layer_idx, x in probe.block_inputs(places):
                costs[layer_idx] += probe.kl(x, layer_idx + 1) * probe.num_sequences / len(dataset)
                progress.advance(probe.num_sequences)
    return costs


class _Units:
    """Sums over the text of what the units of all blocks do."""

    def __init__(self, config: HybridConfig) -> None:
        self._config = config
        self._sums: dict[str, torch.Tensor] = {}
        self._normed = torch.zeros(config.hidden_size, dtype=torch.float64)
        self._scores: dict[str, dict[int, torch.Tensor]] = {}
        self.stream = torch.zeros(len(config.blocks) + 1, config.hidden_size, dtype=torch.float64)
        self.gated: dict[int, torch.Tensor] = {}

    def see_stream(self, place: int, x: torch.Tensor, normed: torch.Tensor) -> None:
        """Take note of the residual stream before and behind a norm."""
        self.stream[place] += _squares(x)
        self._normed += _squares(normed)

    @contextmanager
    def watching(self, mixer: nn.Module) -> Iterator[None]:
        """Take note of what a mixer does within."""
        last = mixer.get_submodule(_OUTPUTS[type(mixer)])
        hooks = [last.register_forward_pre_hook(lambda _, given: self._add("output", *given))]
        if isinstance(mixer, Mamba2):
            hooks += [
                mixer.norm.register_forward_pre_hook(self._see_gate),
                mixer.in_proj.register_forward_hook(partial(self._see_state, mixer)),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, place: int, mixer: nn.Module, tokens: int) -> None:
        """Work out the scores of a block, and forget its sums."""
        means = {name: total / tokens for name, total in self._sums.items()}
        self._sums = {}
        weight = mixer.get_parameter(f"{_OUTPUTS[type(mixer)]}.weight")
        reads = weight.double().square().sum(0).cpu()
        state = means["B"] * means["C"] if "B" in means else None
        if "gated" in means:
            self.gated[place] = means["gated"].float()
        self._score(place, Seen(means["output"] * reads, state))

    def scores(self, tokens: int) -> dict[str, dict[int, torch.Tensor]]:
        """Return the scores of all axes that the model has."""
        self._score(-1, Seen(self._normed / tokens))
        return self._scores

    def _score(self, place: int, seen: Seen) -> None:
        for name, axis in AXES.items():
            if place in axis.places(self._config):
                found = axis.scores(self._config, place, seen)
                self._scores.setdefault(name, {})[place] = found.float()

    def _add(self, name: str, values: torch.Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + _squares(values)

    def _see_gate(self, _: nn.Module, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        y, gate = given
        self._add("gated", y * nn.functional.silu(gate))

    def _see_state(
        self, mixer: Mamba2, _: nn.Module, given: object, projected: torch.Tensor
    ) -> None:
        sizes = mixer.sizes
        conv_input = projected.split([sizes.d_inner, sizes.conv_channels, sizes.num_heads], -1)[1]
        weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
        mixed = causal_conv1d(conv_input, weight, bias)[0]
        shared = sizes.n_groups * sizes.d_state
        B, C = mixed.split([sizes.d_inner, shared, shared], -1)[1:]
        self._add("B", B)
        self._add("C", C)


def _squares(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares over all tokens, ``(width,)`` float64."""
    return values.flatten(0, -2).square().sum(0, dtype=torch.float64).cpu()
