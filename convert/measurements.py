"""Measurements of calibration and selection, as plain data. This module does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockError:
    """The error of a new block, before and after calibration.

    An error is the squared distance from the attention's output, relative to the squared norm of
    that output, on text that was held out of the fit. 0 is the same output; 1 is as bad as an
    output of zeros.

    Attributes:
        block: index in the layout.
        before: the error of the first values that follow from the attention's weights.
        after: the error of the fitted values.
    """

    block: int
    before: float
    after: float


@dataclass(frozen=True)
class CurvePoint:
    """A model in which some attention blocks are swapped, and its KL divergence from the teacher.

    Attributes:
        kept: its attention blocks, counted among the source's attention blocks from 0.
        kl: KL divergence from the teacher's next-token distribution, in nats per token.
    """

    kept: tuple[int, ...]
    kl: float


@dataclass(frozen=True)
class SensitivityCurve:
    """The KL divergence for each number of attention blocks.

    Attributes:
        points: one per number of attention blocks, from all to none.
    """

    points: tuple[CurvePoint, ...]

    def keep(self, count: int, keep: int) -> tuple[int, ...]:
        """Return the ``keep`` of ``count`` attention blocks that stay."""
        return next(point.kept for point in self.points if len(point.kept) == min(keep, count))
