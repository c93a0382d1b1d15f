"""FP8 checkpoints in the compressed-tensors format: reading config.json, and shapes of scales.

A quantized matrix ``X.weight`` is float8_e4m3fn. Its scale is ``X.weight_scale``; if activations
have a static scale, it is ``X.input_scale``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FP8 = "float8_e4m3fn"
TILE = 128
"""The rows and columns of a block, and the columns of a group of activations."""

_WEIGHTS = {"channel": "row", "tensor": "tensor", "block": "block"}
_ACTIVATIONS = {"token": "row", "tensor": "tensor", "group": "group"}

# The cache of keys and values is not quantized, as in transformers, whatever `kv_cache_scheme` is.
_CONFIG_KEYS = frozenset(
    ("quant_method", "format", "config_groups", "ignore", "quantization_status", "version",
     "global_compression_ratio", "kv_cache_scheme")
)  # fmt: skip
_GROUP_KEYS = frozenset(("weights", "input_activations", "targets", "format"))
_SCALE_KEYS = frozenset(
    ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic",
     "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype")
)  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's linear layers are quantized.

    Attributes:
        weights: the granularity of the weights' scales: ``tensor``, ``row`` or ``block``.
        activations: the granularity of the activations' scales: ``tensor``, ``row`` or ``group``.
        static: whether the activations' scale is stored and not computed from each input.
        ignored: patterns of the modules that are not quantized.
    """

    weights: str
    activations: str
    static: bool
    ignored: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the granularity of the scales in words."""
        kind = "static" if self.static else "dynamic"
        return f"FP8, weight scales per {self.weights}, {kind} input scales per {self.activations}"

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the stored scale of a matrix with ``shape``."""
        rows, columns = shape
        return {
            "tensor": (1,),
            "row": (rows, 1),
            "block": (-(-rows // TILE), -(-columns // TILE)),
        }[self.weights]


def read_quantization(raw: dict[str, Any]) -> Quantization | None:
    """Read ``quantization_config`` from a config.json; None if it has none.

    Raises:
        ValueError: it is not FP8 in the compressed-tensors format.
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
        _refuse_unknown(config, _CONFIG_KEYS)
        _refuse_unknown(group, _GROUP_KEYS)
        for part in (weights, activations):
            _refuse_unknown(part, _SCALE_KEYS)
            if not part.get("symmetric", True):
                raise ValueError("zero points")
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
            "its quantization_config is not FP8 in the compressed-tensors format "
            f"({type(error).__name__}: {error}); use the unquantized checkpoint"
        ) from error


def _refuse_unknown(part: dict[str, Any], known: frozenset[str]) -> None:
    """Refuse a key that is not in ``known``, unless its value is null, empty or says "dense"."""
    unknown = [
        key
        for key, value in part.items()
        if key not in known and value and value != {"format": "dense"}
    ]
    if unknown:
        raise ValueError(f"{unknown[0]} is {part[unknown[0]]!r}")


def split_scale(scale: "torch.Tensor", rows: Sequence[int]) -> list["torch.Tensor"]:
    """Split the scale of a stacked matrix into the scales of its parts.

    Args:
        scale: the scale; see `Quantization.scale_shape`.
        rows: the number of rows of each part.

    Raises:
        ValueError: a block of the scale belongs to two parts.
    """
    if scale.shape[0] == 1:
        return [scale] * len(rows)
    tile = 1 if scale.shape[0] == sum(rows) else TILE
    if len(rows) > 1 and any(count % tile for count in rows):
        raise ValueError("a block of its scale belongs to two parts")
    return list(scale.split([-(-count // tile) for count in rows]))
