"""The result of a conversion, which the command prints."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.checkpoints.dtypes import itemsize
from hybridize.checkpoints.streaming_writer import PlannedCheckpoint
from hybridize.conversion.check_report import CheckReport
from hybridize.conversion.measurements import (
    BlockError,
    CalibrationCost,
    CurvePoint,
    SelectionCost,
    SelectionCurve,
)
from hybridize.conversion.plan import Plan
from hybridize.conversion.source import Source
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.layers.kinds import ATTENTION
from hybridize.modeling.layout import Layout
from hybridize.modeling.model_spec import parameter_shapes

CONTEXT = 32 * 1024
"""Number of tokens for which the size of the cache is reported."""


@dataclass(frozen=True)
class ConversionResult:
    """The result of a conversion, or of a dry run.

    Attributes:
        source, output: directories.
        source_format, format: the on-disk architectures.
        reason: why this format was chosen.
        notes: limitations of the result that a user should know.
        layout_before, layout_after: one letter per block: ``*`` attention, ``M`` Mamba-2, ``-``
            MLP.
        kept, swapped: attention blocks, counted among the source's attention blocks from 0.
        parameters_before, parameters_after: numbers of parameters.
        bytes_before, bytes_after: sizes of the weights.
        cache_before, cache_after: bytes of the cache of one sequence of 32k tokens.
        errors: the error of each calibrated block.
        calibration: what the calibration cost.
        curve: the measurements for each number of attention blocks, if there are any.
        selection: what these measurements cost.
        check: on what transformers and hybridize agree; None if nothing was to be checked.
        files: number of safetensors files; 0 for a dry run.
        dry_run: whether nothing was written.
    """

    source: Path
    output: Path
    source_format: str
    format: str
    reason: str
    notes: tuple[str, ...]
    layout_before: str
    layout_after: str
    kept: tuple[int, ...]
    swapped: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    cache_before: int
    cache_after: int
    errors: tuple[BlockError, ...]
    calibration: CalibrationCost | None
    curve: tuple[CurvePoint, ...]
    selection: SelectionCost | None
    check: CheckReport | None
    files: int
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}

    def metrics(self, swapped_blocks: Iterable[int]) -> dict[str, Any]:
        """Return the part of the result that goes into the provenance.

        Args:
            swapped_blocks: the indices of the new blocks in the layout.
        """
        metrics: dict[str, Any] = {
            "layout_before": self.layout_before,
            "layout_after": self.layout_after,
            "swapped_blocks": sorted(swapped_blocks),
            "source_format": self.source_format,
            "format": self.format,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
        }
        if self.errors:
            metrics["block_errors"] = [asdict(error) for error in self.errors]
        if self.curve:
            metrics["sensitivity"] = [asdict(point) for point in self.curve]
        if self.selection:
            metrics["selection"] = asdict(self.selection)
        if self.check:
            metrics["check"] = asdict(self.check)
        return metrics


def describe(
    plan: Plan,
    source: Source,
    output: Path,
    planned: PlannedCheckpoint,
    curve: SelectionCurve | None,
    *,
    dry_run: bool,
) -> ConversionResult:
    """Return what is known of the result before anything is written."""
    reader, specs = source.reader, planned.specs
    num_attention = len(Layout(plan.source.layout).indices(ATTENTION))
    before = cache_cost(plan.source, CONTEXT, itemsize(reader.dtype(reader.names[0])))
    after = cache_cost(plan.fit.spec, CONTEXT, itemsize(specs[0].dtype))
    return ConversionResult(
        source=reader.directory,
        output=output,
        source_format=source.format.name,
        format=plan.format.name,
        reason=plan.reason,
        notes=plan.fit.notes,
        layout_before=plan.source.layout,
        layout_after=plan.layout.pattern,
        kept=plan.kept,
        swapped=tuple(i for i in range(num_attention) if i not in plan.kept),
        parameters_before=_count(parameter_shapes(plan.source).values()),
        parameters_after=_count(spec.shape for spec in specs),
        bytes_before=sum(reader.nbytes(name) for name in reader.names),
        bytes_after=sum(spec.nbytes for spec in specs),
        cache_before=before.kv + before.state,
        cache_after=after.kv + after.state,
        errors=(),
        calibration=None,
        curve=() if curve is None else curve.points,
        selection=None if curve is None else curve.cost,
        check=None,
        files=0,
        dry_run=dry_run,
    )


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)
