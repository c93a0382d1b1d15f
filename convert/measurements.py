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
class CalibrationCost:
    """What a calibration has cost, including its own forward passes of the teacher.

    Attributes:
        forwards: the time, in forward passes of the teacher's blocks over the same text. None if
            no block comes before the fitted one, so that no forward pass was timed.
        seconds: the time.
    """

    forwards: float | None
    seconds: float


@dataclass(frozen=True)
class CurvePoint:
    """A model in which some attention blocks are swapped, compared with the teacher.

    Attributes:
        kept: its attention blocks, counted among the source's attention blocks from 0.
        kl: KL divergence from the teacher's next-token distribution, in nats per token.
        recall: the rise of the loss on tokens that must be retrieved, in nats per such token;
            None unless the selection measures it.
    """

    kept: tuple[int, ...]
    kl: float
    recall: float | None = None


@dataclass(frozen=True)
class SelectionCost:
    """What a selection has computed. The calibration of the new blocks is not included.

    Attributes:
        runs: number of runs over the text, from a swapped block to the end of the model.
        forwards: all computations, in forward passes of the whole model over the text.
        seconds: the time that they took.
    """

    runs: float
    forwards: float
    seconds: float


@dataclass(frozen=True)
class SelectionCurve:
    """The models that a selection went through, and what it cost.

    Attributes:
        points: one per number of attention blocks, from all to none.
        cost: what was computed.
    """

    points: tuple[CurvePoint, ...]
    cost: SelectionCost

    def keep(self, count: int, keep: int) -> tuple[int, ...]:
        """Return the ``keep`` of ``count`` attention blocks that stay."""
        return next(point.kept for point in self.points if len(point.kept) == min(keep, count))
