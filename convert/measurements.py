"""What calibration and selection measure, as plain data: nothing here imports torch."""

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
class Point:
    """One of the models between all attention and none.

    Attributes:
        kept: its attention blocks, counted among the source's attention blocks from 0.
        kl: its KL divergence from the teacher, in nats per token.
    """

    kept: tuple[int, ...]
    kl: float


@dataclass(frozen=True)
class Curve:
    """The KL divergence against the number of attention blocks.

    Attributes:
        points: from all blocks kept to none.
    """

    points: tuple[Point, ...]

    def keep(self, count: int, keep: int) -> tuple[int, ...]:
        """Return which ``keep`` of ``count`` attention blocks stay."""
        return next(point.kept for point in self.points if len(point.kept) == min(keep, count))
