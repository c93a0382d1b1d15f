"""The kinds of layers that a block can have as its mixer.

To add a kind, write one file in ``modeling/layers/`` with two classes, and add one line to
``LAYER_KINDS``:

- a frozen dataclass of its sizes, a subclass of `hybridize.modeling.layers.sizes.BlockSizes`;
- the mixer, an ``nn.Module`` that is built as ``Mixer(config, sizes, layer_idx)`` and called as
  ``mixer(x, context)`` with ``x`` of shape ``(batch, length, hidden)``; see
  `hybridize.modeling.layers.context.BlockContext`.

The model, its configuration, ``inspect`` and hybridize's own format then have the new kind. The
other formats refuse it until they name its tensors.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

ATTENTION = "*"
MAMBA = "M"
MLP = "-"


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer. Its classes are imported on first use.

    Attributes:
        name: key of its sizes in the ``config.json`` of hybridize's own format.
        title: its name in tables.
        sizes: the dataclass of its sizes, as ``module:Class``.
        mixer: the module, as ``module:Class``.
    """

    name: str
    title: str
    sizes: str
    mixer: str

    def sizes_class(self) -> Any:
        """Return the dataclass of its sizes."""
        return _import(self.sizes)

    def mixer_class(self) -> Any:
        """Return the class of its mixer."""
        return _import(self.mixer)


_LAYERS = "hybridize.modeling.layers"

LAYER_KINDS = {
    ATTENTION: LayerKind(
        "attention",
        "attention",
        f"{_LAYERS}.sizes:AttentionSizes",
        f"{_LAYERS}.attention:Attention",
    ),
    MAMBA: LayerKind("mamba", "Mamba-2", f"{_LAYERS}.sizes:MambaSizes", f"{_LAYERS}.mamba2:Mamba2"),
    MLP: LayerKind("mlp", "MLP", f"{_LAYERS}.sizes:MLPSizes", f"{_LAYERS}.mlp:FeedForward"),
}
"""Every kind by its letter in a `Layout`."""


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    # The modeling file that is saved beside a checkpoint joins all modules into one.
    return globals().get(name) or getattr(import_module(module), name)
