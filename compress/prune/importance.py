"""Measures the importance of a model's parts with forward passes over some text.

The importance of a unit (a channel or a head) is what it writes to the residual stream: the mean
square of its activations times the squared norm of the weights that read them. It is zero if either
is zero, and comparable between the units of a block. The importance of a block is the KL divergence
when it is skipped, as in MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4.1). Its influence, the
angle by which it turns the residual stream, is measured too (Men et al. 2024, arXiv 2403.03853,
equation 1).
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
from hybridize.compress.prune.axes.base import WHOLE_MODEL, ActivationStats, last_linear
from hybridize.compress.prune.scores import Scores
from hybridize.console import console
from hybridize.data.kl import index_batches, kl_probes
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.kernels import causal_conv1d
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.model_spec import ModelSpec

_SKIPPING_TOKENS = 200_000
"""Tokens on which blocks are skipped, all blocks together."""

_SKIPPING_MIN_TOKENS = 4096
"""Tokens for each block, at least. A block costs hundredths of a nat or more when it is skipped."""


@torch.no_grad()
def measure_importance(
    directory: Path,
    tensors: Tensors,
    config: ModelSpec,
    dataset: PackedDataset,
    device: torch.device,
    *,
    source: str,
    offload: bool = False,
) -> Scores:
    """Measure the importance of all units and blocks.

    Args:
        directory, tensors, config: the model.
        dataset: the text.
        device: where blocks run, in float32.
        source: a hash of the checkpoint, which is stored with the scores.
        offload: load only one block at a time. The importance of a block is then its influence,
            because the KL divergence needs the whole model.

    Raises:
        InputError: the model's activations are not finite.
    """
    units = _UnitScores(config)
    model = BlockwiseModel(tensors, config, device)
    batches = [dataset.sequences(indices) for indices in index_batches(dataset)]
    stream = [model.embed(ids) for ids, _ in batches]
    influence = []
    with console.progress("measuring blocks", len(config.blocks), "blocks") as progress:
        for block_idx in range(len(config.blocks)):
            block, distance = model.block(block_idx), 0.0
            for number, (x, (_, seq_idx)) in enumerate(zip(stream, batches, strict=True)):
                units.add_stream(block_idx, x, block.norm(x))
                with units.recording(block_idx, block.mixer):
                    after = block(x, model.context(x, seq_idx.to(device)))
                cosine = torch.nn.functional.cosine_similarity(x, after, dim=-1)
                distance += float((1 - cosine).sum()) / dataset.tokens
                stream[number] = after
            influence.append(distance)
            units.finish_block(block_idx, block.mixer, dataset.tokens)
            progress.advance()
    norm = model.final_norm()
    for x in stream:
        units.add_stream(len(config.blocks), x, norm(x))
    influences = torch.tensor(influence)
    scores = Scores(
        units=units.finish(dataset.tokens),
        blocks=influences.clone() if offload else _skip_blocks(directory, dataset, device),
        influence=influences,
        stream=(units.stream / dataset.tokens).float(),
        gated=units.gated,
        source=source,
        tokens=dataset.tokens,
    )
    if not (scores.blocks.isfinite().all() and scores.stream.isfinite().all()):
        raise InputError(
            f"{directory}: the activations on the calibration text are not finite; check the "
            "checkpoint with hybridize verify"
        )
    return scores


def _skip_blocks(directory: Path, dataset: PackedDataset, device: torch.device) -> torch.Tensor:
    """Return the KL divergence from the model when each block is skipped, ``(blocks,)``."""
    model = load_model(directory, dtype=torch.float32, device=device)
    blocks = range(len(model.model.blocks))
    dataset = skipping_text(dataset, len(blocks))
    costs = torch.zeros(len(blocks))
    with console.progress("skipping blocks", len(blocks) * len(dataset), "runs") as progress:
        for probe in kl_probes(model, dataset):
            for block_idx, x in probe.block_inputs(blocks):
                costs[block_idx] += probe.kl(x, block_idx + 1) * probe.num_sequences / len(dataset)
                progress.advance(probe.num_sequences)
    return costs


def skipping_text(dataset: PackedDataset, blocks: int) -> PackedDataset:
    """Return the part of a text on which every block of a model is skipped once.

    The time grows with the blocks and with the tokens. A deep model gets fewer tokens. Sequences
    are chosen evenly.
    """
    tokens = max(_SKIPPING_MIN_TOKENS, _SKIPPING_TOKENS // blocks)
    count = min(len(dataset), max(1, tokens // dataset.length))
    chosen = torch.arange(count) * len(dataset) // count
    ids, seq_idx = dataset.sequences(chosen)
    return PackedDataset(ids.int(), seq_idx.int())


class _UnitScores:
    """Sums the squared activations of all units over the text, and scores the units.

    Attributes:
        stream: ``(blocks + 1, hidden_size)`` float64, sums of squares of the residual stream before
            each norm.
        gated: see `Scores`.
    """

    def __init__(self, config: ModelSpec) -> None:
        self._config = config
        self._sums: dict[str, torch.Tensor] = {}  # of the current block
        self._normed = torch.zeros(config.hidden_size, dtype=torch.float64)
        self._scores: dict[str, dict[int, torch.Tensor]] = {}
        self.stream = torch.zeros(len(config.blocks) + 1, config.hidden_size, dtype=torch.float64)
        self.gated: dict[int, torch.Tensor] = {}

    def add_stream(self, block_idx: int, x: torch.Tensor, normed: torch.Tensor) -> None:
        """Add the residual stream before and after a norm."""
        self.stream[block_idx] += _sum_of_squares(x)
        self._normed += _sum_of_squares(normed)

    @contextmanager
    def recording(self, block_idx: int, mixer: nn.Module) -> Iterator[None]:
        """Add the activations of a mixer that runs in this context."""
        hooks = []
        last = last_linear(self._config.blocks[block_idx])
        if last is not None:
            linear = mixer.get_submodule(last)
            hook = linear.register_forward_pre_hook(lambda _, inputs: self._add("output", *inputs))
            hooks.append(hook)
        if isinstance(mixer, Mamba2):
            hooks += [
                mixer.norm.register_forward_pre_hook(self._add_gated),
                mixer.in_proj.register_forward_hook(partial(self._add_state, mixer)),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish_block(self, block_idx: int, mixer: nn.Module, tokens: int) -> None:
        """Score the units of the current block, and reset the sums for the next one."""
        last = last_linear(self._config.blocks[block_idx])
        if last is None:
            return
        means = {name: total / tokens for name, total in self._sums.items()}
        self._sums = {}
        weight = mixer.get_parameter(f"{last}.weight")
        weight_power = weight.double().square().sum(0).cpu()
        state = means["B"] * means["C"] if "B" in means else None
        if "gated" in means:
            self.gated[block_idx] = means["gated"].float()
        self._score(block_idx, ActivationStats(means["output"] * weight_power, state))

    def finish(self, tokens: int) -> dict[str, dict[int, torch.Tensor]]:
        """Return the scores by axis name and block index."""
        self._score(WHOLE_MODEL, ActivationStats(self._normed / tokens))
        return self._scores

    def _score(self, block_idx: int, stats: ActivationStats) -> None:
        for name, axis in AXES.items():
            if block_idx in axis.blocks(self._config):
                scores = axis.score(axis.sizes_in(self._config, block_idx), stats)
                self._scores.setdefault(name, {})[block_idx] = scores.float()

    def _add(self, name: str, values: torch.Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + _sum_of_squares(values)

    def _add_gated(self, _: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        y, gate = inputs
        self._add("gated", y * nn.functional.silu(gate))

    def _add_state(
        self, mixer: Mamba2, _: nn.Module, inputs: object, projected: torch.Tensor
    ) -> None:
        del inputs
        sizes = mixer.sizes
        conv_input = projected.split([sizes.d_inner, sizes.conv_channels, sizes.num_heads], -1)[1]
        weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
        conv_output = causal_conv1d(conv_input, weight, bias)[0]
        bc_width = sizes.n_groups * sizes.d_state
        B, C = conv_output.split([sizes.d_inner, bc_width, bc_width], -1)[1:]
        self._add("B", B)
        self._add("C", C)


def _sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares over all tokens, ``(width,)`` float64."""
    return values.flatten(0, -2).square().sum(0, dtype=torch.float64).cpu()
