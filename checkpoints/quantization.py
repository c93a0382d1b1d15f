"""FP8 checkpoints: how they say what they are, in the compressed-tensors format.

A quantized matrix ``X.weight`` is float8_e4m3fn; beside it lie ``X.weight_scale`` and, where
activations have a scale of their own, ``X.input_scale``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FP8 = "float8_e4m3fn"
TILE = 128
"""Rows and columns of a block; columns of a group of activations."""

_WEIGHTS = {"channel": "row", "tensor": "tensor", "block": "block"}
_ACTIVATIONS = {"token": "row", "tensor": "tensor", "group": "group"}
# Per granularity of the weights, that of the activations, and whether their scales are static.
_SCHEMES = {
    ("row", "row", False): "fp8",
    ("tensor", "tensor", True): "fp8-tensor",
    ("block", "group", False): "fp8-block",
}


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's linear layers are quantized.

    Attributes:
        weights: granularity of the weights' scales: ``tensor``, ``row`` or ``block``.
        activations: granularity of the activations': ``tensor``, ``row`` or ``group``.
        static: whether the activations' scale is stored rather than taken from each input.
        ignored: patterns of the modules that are not.
    """

    weights: str
    activations: str
    static: bool
    ignored: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """The scheme's name, or what it does where it has none here."""
        known = _SCHEMES.get((self.weights, self.activations, self.static))
        return known or f"{self.weights} weights, {self.activations} activations"

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a matrix of ``shape``, as it is stored."""
        rows, columns = shape
        return {
            "tensor": (1,),
            "row": (rows, 1),
            "block": (-(-rows // TILE), -(-columns // TILE)),
        }[self.weights]


def read_quantization(raw: dict[str, Any]) -> Quantization | None:
    """Understand ``quantization_config`` in a config.json; None where there is none.

    Raises:
        ValueError: something else than FP8 in the compressed-tensors format.
    """
    config = raw.get("quantization_config")
    if not config:
        return None
    try:
        method, format_ = config["quant_method"], config["format"]
        if (method, format_) != ("compressed-tensors", "float-quantized"):
            raise ValueError(f"{method} in format {format_}")
        (group,) = config["config_groups"].values()
        weights, activations = group["weights"], group["input_activations"]
        for part in (weights, activations):
            if (part["type"], part["num_bits"]) != ("float", 8):
                raise ValueError(f"{part['num_bits']} bits of type {part['type']}")
        sizes = (weights.get("block_structure"), activations.get("group_size"))
        if sizes[0] not in (None, [TILE, TILE]) or sizes[1] not in (None, TILE):
            raise ValueError(f"blocks of {sizes[0]} and groups of {sizes[1]}")
        return Quantization(
            _WEIGHTS[weights["strategy"]],
            _ACTIVATIONS[activations["strategy"]],
            not activations["dynamic"],
            tuple(config.get("ignore") or ()),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            "by its quantization_config the checkpoint is quantized, and not to FP8 in the "
            f"compressed-tensors format ({type(error).__name__}: {error}); start from the "
            "unquantized one"
        ) from error


def split_scale(scale: "torch.Tensor", rows: Sequence[int]) -> list["torch.Tensor"]:
    """Take the scale of a matrix apart for the parts that it is stacked of.

    Args:
        scale: see `Quantization.scale_shape`.
        rows: how many each part has.

    Raises:
        ValueError: a block lies across the border between two parts.
    """
    if scale.shape[0] == 1:
        return [scale] * len(rows)
    tile = 1 if scale.shape[0] == sum(rows) else TILE
    if len(rows) > 1 and any(count % tile for count in rows):
        raise ValueError("a block lies across the border between two parts")
    return list(scale.split([-(-count // tile) for count in rows]))
