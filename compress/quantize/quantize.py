"""`hybridize quantize`: store a checkpoint's linear layers in FP8, one tensor at a time."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridize.checkpoints import CheckpointReader, check_output
from hybridize.checkpoints.header_reader import open_headers
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.provenance import describe_source
from hybridize.checkpoints.streaming_writer import PlannedCheckpoint, write_checkpoint
from hybridize.compress.quantize.config import QuantizeConfig
from hybridize.compress.quantize.plan import QuantizationPlan, plan_quantization
from hybridize.compress.quantize.quantized_tensors import QuantizedTensors
from hybridize.compress.quantize.results import QuantizeResult
from hybridize.extras import require_extra
from hybridize.modeling.model_spec import parameter_shapes
from hybridize.options import takes_options


@takes_options(QuantizeConfig)
def quantize(model: str | Path, output: str | Path, config: QuantizeConfig) -> QuantizeResult:
    """Store a checkpoint's linear layers in FP8, in the compressed-tensors format.

    One tensor is in memory at a time, or one block while activations are calibrated. The whole
    model must fit in memory for ``keep_bf16="auto:N"``, and for text that the model generates.

    Args:
        model: a directory or a hub id, in any format that hybridize reads.
        output: the directory to write, in the same format.
        config: the options; you can also give each option as a keyword.

    Returns:
        The result, with the figures that the command prints.

    Raises:
        InputError: an option or the source is wrong; nothing was written.
        HybridizeError: writing failed; the output is as it was before.
    """
    if not config.dry_run:
        require_extra("quantize", "compressed_tensors", "quantization")
    output = Path(output)
    with _open(model, config) as reader:
        if not config.dry_run:  # before the sensitivity of the blocks is measured
            check_output(output, reader.directory, force=config.force)
        plan = plan_quantization(reader, config)
        tensors = QuantizedTensors(reader, plan).planned_checkpoint()
        result = _describe(reader, plan, tensors, output, dry_run=config.dry_run)
        if config.dry_run:
            return result
        plan.tensors.check_config()
        return _write(reader, plan, tensors, result, config)


def _open(model: str | Path, config: QuantizeConfig) -> CheckpointReader:
    """Open the source; the headers alone for a dry run without measurements."""
    if config.dry_run and not config.measures:
        return open_headers(model)
    # `QuantizedTensors` checks for NaN and infinity, with a message for this command.
    return CheckpointReader(resolve(model), allow_nonfinite=True)


def _describe(
    reader: CheckpointReader,
    plan: QuantizationPlan,
    tensors: PlannedCheckpoint,
    output: Path,
    *,
    dry_run: bool,
) -> QuantizeResult:
    """Return the result before anything is written: the number of files is not known yet."""
    return QuantizeResult(
        source=reader.directory,
        output=output,
        format=plan.format.name,
        scheme=plan.scheme.name,
        layout=plan.config.layout,
        kept=plan.kept,
        skipped=plan.skipped,
        sensitivity=plan.measured.block_costs,
        parameters=sum(map(math.prod, parameter_shapes(plan.config).values())),
        quantized=sum(math.prod(target.entry.shape) for target in plan.quantized.values()),
        bytes_before=sum(reader.nbytes(entry.disk) for entry in plan.entries),
        bytes_after=tensors.nbytes,
        ignored=tuple(plan.ignored),
        files=0,
        dry_run=dry_run,
    )


def _write(
    reader: CheckpointReader,
    plan: QuantizationPlan,
    tensors: PlannedCheckpoint,
    result: QuantizeResult,
    config: QuantizeConfig,
) -> QuantizeResult:
    reader.hash_in_background()

    def finished(files: int) -> dict[str, Any]:
        """Complete the result, and return the record of this quantization."""
        nonlocal result
        result = replace(result, files=files)
        return {
            "command": "quantize",
            "options": config.record(),
            "seed": config.seed,
            "source": describe_source(reader.directory, reader.sha256()),
            "metrics": result.metrics(),
        }

    quantization = plan.scheme.config(plan.ignored)
    write_checkpoint(
        tensors,
        result.output,
        reader=reader,
        source_format=plan.format,
        config_json={"quantization_config": quantization},
        record=finished,
        label="quantizing",
        force=config.force,
        max_shard_size=config.max_shard_size,
        extra_files={},
    )
    return result
