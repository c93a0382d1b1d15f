"""The plan of a quantization: the layers to quantize, the blocks to keep, and static scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import Entry, Format, read_config
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.compress.quantize.config import QuantizeConfig
from hybridize.compress.quantize.input_ranges import input_maxima
from hybridize.compress.quantize.kept_blocks import (
    KeptBlock,
    choose_ends,
    choose_sensitive,
    parse_keep,
)
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.sensitivity import measure_blocks
from hybridize.compress.quantize.targets import Target, find_targets, ignore_patterns
from hybridize.data.calibration import load_calibration
from hybridize.data.source import TEACHER
from hybridize.errors import InputError
from hybridize.modeling.devices import choose_device
from hybridize.modeling.model_spec import ModelSpec


@dataclass(frozen=True)
class QuantizationPlan:
    """What will be quantized.

    Attributes:
        scheme: the scheme.
        format, config: the source's on-disk format and its configuration.
        entries: the source's tensors.
        quantized: the linear layers to quantize, by the names of their weights on disk.
        skipped: layers of other blocks that the scheme cannot store: name on disk to reason.
        kept: the blocks that are not quantized.
        ignored: the patterns of unquantized modules for config.json.
        maxima: the largest inputs of each layer, if the scheme's activations are static.
        sensitivity: see `QuantizeResult`.
    """

    scheme: Scheme
    format: Format
    config: ModelSpec
    entries: tuple[Entry, ...]
    quantized: dict[str, Target]
    skipped: dict[str, str]
    kept: tuple[KeptBlock, ...]
    ignored: list[str]
    maxima: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sensitivity: Mapping[int, float] = field(default_factory=dict)


def plan_quantization(reader: CheckpointReader, options: QuantizeConfig) -> QuantizationPlan:
    """Choose what to quantize. Measures on the calibration text if the options ask for it.

    Args:
        reader: the checkpoint.
        options: the options of `quantize`.

    Raises:
        InputError: the scheme cannot quantize this checkpoint, or an option does not fit it.
    """
    scheme = SCHEMES[options.scheme]
    format_, config = read_config(reader)
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
    maxima: dict[str, torch.Tensor] = {}
    costs: dict[int, float] = {}
    if needs_text:
        measured = _Measurement(reader, format_, config, options)
        if scheme.quantization.static:
            maxima = measured.input_maxima()
        if keep.budget is not None:
            costs = measured.block_costs(scheme, targets, maxima)
    if keep.budget is None:
        kept = choose_ends(keep, blocks, config.layout)
    else:
        kept = choose_sensitive(keep, costs, config.layout)
    kept_blocks = {block.block for block in kept}
    candidates = [target for target in targets if target.block not in kept_blocks]
    return QuantizationPlan(
        scheme=scheme,
        format=format_,
        config=config,
        entries=tuple(format_.tensor_map(config)),
        quantized={t.entry.disk: t for t in candidates if not t.obstacle},
        skipped={t.entry.disk: t.obstacle for t in candidates if t.obstacle},
        kept=kept,
        ignored=ignore_patterns(targets, kept_blocks),
        maxima=maxima,
        sensitivity=costs,
    )


class _Measurement:
    """Measures the model on the calibration text."""

    def __init__(
        self,
        reader: CheckpointReader,
        format_: Format,
        config: ModelSpec,
        options: QuantizeConfig,
    ) -> None:
        self._directory: Path = reader.directory
        self._config, self._device = config, choose_device(options.device)
        self._tensors = CheckpointTensors(reader, format_, config)
        self._dataset = load_calibration(
            options.calibration or TEACHER,
            model=self._directory,
            config=config,
            tokens=options.calibration_tokens,
            seed=options.seed,
            device=self._device,
        )

    def input_maxima(self) -> dict[str, torch.Tensor]:
        """Return the largest inputs of all linear layers."""
        return input_maxima(self._tensors, self._config, self._dataset, self._device)

    def block_costs(
        self, scheme: Scheme, targets: list[Target], maxima: Mapping[str, torch.Tensor]
    ) -> dict[int, float]:
        """Return the cost of quantizing each block."""
        return measure_blocks(self._directory, scheme, targets, maxima, self._dataset, self._device)
