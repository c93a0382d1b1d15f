"""The pruning axes, by the names that ``--axes`` takes.

To add an axis, write one file in this folder and add one line to ``AXES``. The order matters: axes
are applied from top to bottom. An axis that shrinks every head or group comes before the axis that
removes whole heads or groups, because both use scores that were measured before the cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridize.compress.registry import Entry, Registry

if TYPE_CHECKING:  # base.py imports torch, which `prune --help` does without
    from hybridize.compress.prune.axes.base import Axis

DEPTH = "depth"
"""The name for removing whole layers. It is not an `Axis`, because it resizes no block."""

_FOLDER = "hybridize.compress.prune.axes"

AXES: Registry[Axis[Any]] = Registry(
    {
        "ffn": Entry(f"{_FOLDER}.ffn:IntermediateSize", "channels of MLPs"),
        "attention-queries": Entry(f"{_FOLDER}.attention:QueryHeads", "query heads of KV heads"),
        "attention": Entry(f"{_FOLDER}.attention:KVHeads", "KV heads with their query heads"),
        "mamba-channels": Entry(f"{_FOLDER}.mamba:HeadDim", "channels of Mamba-2 heads"),
        "mamba-state": Entry(f"{_FOLDER}.mamba:StateSize", "channels of Mamba-2 states"),
        "mamba-heads": Entry(f"{_FOLDER}.mamba:Heads", "whole Mamba-2 heads"),
        "hidden": Entry(f"{_FOLDER}.hidden:HiddenSize", "channels of the residual stream"),
    }
)


def axis_names() -> tuple[str, ...]:
    """Return the names that ``--axes`` takes: `DEPTH`, then those of `AXES`."""
    return (DEPTH, *AXES)


def axes_help() -> str:
    """Return the names that ``--axes`` takes, with a few words on each."""
    return f"{DEPTH}: whole layers; {AXES.help()}"
