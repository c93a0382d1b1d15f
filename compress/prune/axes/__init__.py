"""The ways in which a model can be made narrower, by the names that ``--axes`` takes.

A new one is a new file here and one line in ``_ALL``. They are applied in this order: what every
head or group has goes before whole heads and groups do, so that scores keep their places.
"""

from hybridize.compress.prune.axes.attention import Groups, Queries
from hybridize.compress.prune.axes.base import Axis
from hybridize.compress.prune.axes.ffn import FeedForwardWidth
from hybridize.compress.prune.axes.hidden import HiddenSize
from hybridize.compress.prune.axes.mamba import Channels, Heads, StateSize

_ALL: tuple[Axis, ...] = (
    FeedForwardWidth(),
    Queries(),
    Groups(),
    Channels(),
    StateSize(),
    Heads(),
    HiddenSize(),
)

AXES: dict[str, Axis] = {axis.name: axis for axis in _ALL}

__all__ = ["AXES", "Axis"]
