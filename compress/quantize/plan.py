"""The plan of a quantization: the layers to quantize, and the blocks to keep.

Torch is imported only if something is measured, so that a dry run is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import Entry, Format, read_config
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.compress.quantize.config import QuantizeConfig
from hybridize.compress.quantize.kept_blocks import (
    KeptBlock,
    choose_ends,
    choose_sensitive,
    parse_keep,
)
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.targets import Target, find_targets, ignore_patterns
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Measurements:
    """The measurements on the calibration text. Both are empty if the options need none.

    Attributes:
        input_maxima: by weight name, the largest magnitude of a linear layer's inputs, ``(1,)``.
        block_costs: by block, the KL divergence in nats per token when this block alone is
            quantized.
    """

    input_maxima: dict[str, torch.Tensor] = field(default_factory=dict)
    block_costs: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationPlan:
    """The plan of a quantization.

    Attributes:
        scheme: the scheme.
        format, config: the source's on-disk format and its configuration.
        tensors: the source's tensors, under the model's own names.
        entries: the source's tensors as they are stored on disk.
        quantized: the linear layers to quantize, by the names of their weights on disk.
        skipped: by name on disk, why the scheme cannot store a weight. Weights of kept blocks are
            not listed.
        kept: the blocks that are not quantized.
        ignored: the patterns of unquantized modules for config.json.
        measured: the measurements on the calibration text.
    """

    scheme: Scheme
    format: Format
    config: ModelSpec
    tensors: CheckpointTensors
    entries: tuple[Entry, ...]
    quantized: dict[str, Target]
    skipped: dict[str, str]
    kept: tuple[KeptBlock, ...]
    ignored: list[str]
    measured: Measurements


def plan_quantization(reader: CheckpointReader, options: QuantizeConfig) -> QuantizationPlan:
    """Choose the layers to quantize. Runs the calibration text if the options need it.

    Args:
        reader: the checkpoint.
        options: the options of `quantize`.

    Raises:
        InputError: the scheme cannot quantize this checkpoint, or an option does not fit it.
    """
    scheme = SCHEMES[options.scheme]
    format_, config = read_config(reader)
    tensors = CheckpointTensors(reader, format_, config)  # checks all shapes
    targets = find_targets(format_, config, scheme)
    blocks = sorted({target.block for target in targets if not target.obstacle})
    if not blocks:
        reason = next((t.obstacle for t in targets if t.obstacle), "the model has no blocks")
        raise InputError(
            f"`scheme={options.scheme}` cannot quantize any layer of {reader.directory}: {reason}"
        )
    keep = parse_keep(options.keep_bf16, blocks)
    needs_text = scheme.quantization.static or keep.budget is not None
    if options.calibration is not None and not needs_text:
        raise InputError(
            f"`calibration`: `scheme={options.scheme}` computes its scales from each input; leave "
            "the text out, or add `keep_bf16=auto:N`"
        )
    measured = Measurements()
    if needs_text:
        from hybridize.compress.quantize.measure import measure

        measured = measure(reader.directory, tensors, config, scheme, targets, keep, options)
    if keep.budget is None:
        kept = choose_ends(keep, blocks, config.layout)
    else:
        kept = choose_sensitive(keep, measured.block_costs, config.layout)
    kept_blocks = {block.block for block in kept}
    candidates = [target for target in targets if target.block not in kept_blocks]
    return QuantizationPlan(
        scheme=scheme,
        format=format_,
        config=config,
        tensors=tensors,
        entries=tuple(format_.tensor_map(config)),
        quantized={t.entry.disk: t for t in candidates if not t.obstacle},
        skipped={t.entry.disk: t.obstacle for t in candidates if t.obstacle},
        kept=kept,
        ignored=ignore_patterns(targets, kept_blocks),
        measured=measured,
    )
