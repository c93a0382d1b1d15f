"""What a conversion did, or would do."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.checkpoints.streaming_writer import Outgoing
from hybridize.conversion.calibration import BlockError
from hybridize.conversion.plan import Plan
from hybridize.conversion.selection import Curve, Point
from hybridize.conversion.source import Source
from hybridize.modeling.config import parameter_shapes
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.layout import ATTENTION, Layout

CONTEXT = 32 * 1024
"""Tokens for which the cache's size is reported."""


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did, or would do.

    Attributes:
        source, output: directories.
        source_format, format: the on-disk architectures.
        reason: why this format was chosen.
        notes: what a user should know about the result.
        layout_before, layout_after: the patterns.
        kept, swapped: attention blocks, counted among the source's attention blocks from 0.
        parameters_before, parameters_after: counts.
        bytes_before, bytes_after: sizes of the weights.
        cache_before, cache_after: bytes of one sequence's cache at 32k tokens.
        errors: for each calibrated block, its distance from the attention block.
        curve: the cost of each step from all attention to none, if it was measured.
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
    curve: tuple[Point, ...]
    files: int
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}

    def metrics(self, swapped_blocks: Iterable[int]) -> dict[str, Any]:
        """Return the part of the result that the provenance keeps.

        Args:
            swapped_blocks: the new blocks' indices in the layout.
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
        return metrics


def describe(
    plan: Plan,
    source: Source,
    output: Path,
    outgoing: Outgoing,
    curve: Curve | None,
    *,
    dry_run: bool,
) -> ConversionResult:
    """Return the result as it is known before anything is written."""
    reader, specs = source.reader, outgoing.specs
    num_attention = len(Layout(plan.source.layout).indices(ATTENTION))
    old = cache_cost(plan.source, CONTEXT, reader.dtype(reader.names[0]).itemsize)
    new = cache_cost(plan.fit.config, CONTEXT, specs[0].dtype.itemsize)
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
        cache_before=old.kv + old.state,
        cache_after=new.kv + new.state,
        errors=(),
        curve=() if curve is None else curve.points,
        files=0,
        dry_run=dry_run,
    )


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)
