"""`hybridize convert`: a Transformer checkpoint becomes a hybrid, one tensor at a time."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.checkpoints import check_output
from hybridize.checkpoints.provenance import describe_source
from hybridize.checkpoints.streaming_writer import (
    PlannedCheckpoint,
    plan_checkpoint,
    write_checkpoint,
)
from hybridize.conversion.config import ConvertConfig
from hybridize.conversion.converted_tensors import ConvertedTensors
from hybridize.conversion.measurements import SelectionCurve
from hybridize.conversion.new_blocks import NewBlocks, check_donor_directory
from hybridize.conversion.output_check import OutputCheck, require_check
from hybridize.conversion.plan import MambaChoice, Plan, plan_conversion
from hybridize.conversion.results import ConversionResult, describe
from hybridize.conversion.sensitivity_plot import draw_curve
from hybridize.conversion.source import Source, open_source
from hybridize.extras import require_extra
from hybridize.options import takes_options

if TYPE_CHECKING:
    import torch

    from hybridize.data.packing import PackedDataset


@takes_options(ConvertConfig)
def convert(model: str | Path, output: str | Path, config: ConvertConfig) -> ConversionResult:
    """Swap attention blocks of a checkpoint for Mamba-2 blocks.

    Reads and writes one block at a time, so that the memory does not grow with the number of
    blocks. Only ``select`` with measurements and ``calibration="teacher"`` need the whole model in
    memory.

    Args:
        model: a directory or a hub id, in any format that hybridize reads.
        output: the directory to write.
        config: the options; you can also give each option as a keyword.

    Returns:
        The result, with the numbers that the command prints.

    Raises:
        InputError: an option or the source is wrong; nothing was written.
        HybridizeError: writing failed, or the result does not compute what it should (`check`);
            an existing output is unchanged.
    """
    check_donor_directory(config)
    if config.measures_swaps and not config.dry_run:
        # Long measurements must not end without the plot.
        require_extra("train", "matplotlib", f"`select={config.select}`")
    output = Path(output)
    with ExitStack() as stack:
        source = open_source(
            model,
            stack,
            config_is_enough=config.dry_run and config.calibration is None,
            allow_nonfinite=config.allow_nonfinite,
        )
        if not config.dry_run:  # before hours of measurements
            check_output(output, source.directory, force=config.force)
        require_check(source, output, config)
        device, dataset = _load_calibration(source, config)
        new_blocks = NewBlocks(source, config, dataset, device, stack)
        curve = _measure_swaps(source, config, dataset, new_blocks, device)
        plan = _plan(source, config, curve)
        planned = _plan_tensors(source, plan, new_blocks, config)
        result = describe(plan, source, output, planned, curve, dry_run=config.dry_run)
        if config.dry_run:
            return result
        return _write(source, plan, planned, new_blocks, curve, result, config)


def _load_calibration(
    source: Source, config: ConvertConfig
) -> "tuple[torch.device | None, PackedDataset | None]":
    """Return the device and the text for calibration and selection, or None if unused.

    Without them, the options are checked and the conversion is planned before torch is imported.
    """
    if config.calibration is None:
        return None, None
    from hybridize.data.calibration import load_calibration
    from hybridize.modeling.devices import choose_device

    device = choose_device(config.device)
    source.tensors.check_config()
    dataset = load_calibration(
        config.calibration,
        model=source.directory,
        config=source.config,
        tokens=config.calibration_tokens,
        seed=config.seed,
        device=device,
    )
    return device, dataset


def _measure_swaps(
    source: Source,
    config: ConvertConfig,
    dataset: "PackedDataset | None",
    new_blocks: NewBlocks,
    device: "torch.device | None",
) -> SelectionCurve | None:
    """Measure the cost of swaps, if the selection needs it."""
    if not config.measures_swaps:
        return None
    from hybridize.conversion.selection import measure_selection

    assert dataset is not None
    assert device is not None
    return measure_selection(
        source.directory,
        config.select,
        MambaChoice.from_config(config),
        new_blocks.values,
        dataset.first(config.select_tokens),
        device,
        config.seed,
    )


def _plan(source: Source, config: ConvertConfig, curve: SelectionCurve | None) -> Plan:
    return plan_conversion(
        source.config,
        attention=config.attention,
        keep=config.keep,
        pattern=config.pattern,
        mamba=MambaChoice.from_config(config),
        format_name=config.format,
        choose=None if curve is None else curve.keep,
    )


def _plan_tensors(
    source: Source, plan: Plan, new_blocks: NewBlocks, config: ConvertConfig
) -> PlannedCheckpoint:
    """Return the tensors of the result. Each value is read or computed when it is written."""
    converted = ConvertedTensors(
        source.tensors,
        source.config,
        plan.target,
        new_blocks.values,
        allow_nonfinite=config.allow_nonfinite,
    )
    return plan_checkpoint(
        converted,
        plan.target,
        plan.format,
        plan.fit,
        None if config.dtype == "auto" else config.dtype,
    )


def _write(
    source: Source,
    plan: Plan,
    planned: PlannedCheckpoint,
    new_blocks: NewBlocks,
    curve: SelectionCurve | None,
    result: ConversionResult,
    config: ConvertConfig,
) -> ConversionResult:
    source.tensors.check_config()
    source.reader.hash_in_background()
    check = OutputCheck(source, plan, planned, result.output, config)

    def finished(files: int) -> dict[str, Any]:
        """Complete the result, and return the record for the provenance."""
        nonlocal result
        swapped = plan.layout.swapped
        result = replace(
            result,
            files=files,
            check=check.report,
            errors=tuple(error for error in new_blocks.errors if error.block in swapped),
            calibration=new_blocks.calibration_cost,
        )
        return {
            "command": "convert",
            "options": config.record(),
            "seed": config.seed,
            "source": describe_source(source.directory, source.reader.sha256()),
            "metrics": result.metrics(swapped),
        }

    write_checkpoint(
        planned,
        result.output,
        reader=source.reader,
        source_format=source.format,
        record=finished,
        label="converting",
        force=config.force,
        max_shard_size=config.max_shard_size,
        extra_files={} if curve is None else {"sensitivity.png": draw_curve(curve, plan.kept)},
        check=check.check_result,
    )
    return result
