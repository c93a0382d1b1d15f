"""The base class of all quantization schemes. Torch is imported when something is quantized."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

from hybridize.checkpoints.formats import Entry
from hybridize.checkpoints.quantization import Quantization

if TYPE_CHECKING:
    import torch


class Scheme(ABC):
    """The way in which weights of linear layers and their inputs are quantized to FP8.

    Args:
        name: the scheme's name in the registry.

    Attributes:
        quantization: the granularity of the scales, in this package's terms.
        weight_args, input_args: the granularity in the terms of compressed-tensors'
            ``QuantizationArgs``, without the arguments that all FP8 schemes share.
    """

    quantization: ClassVar[Quantization]
    weight_args: ClassVar[dict[str, Any]]
    input_args: ClassVar[dict[str, Any]]

    def __init__(self, name: str) -> None:
        self.name = name

    def obstacle(self, entry: Entry) -> str:
        """Return why this scheme cannot store a tensor; empty if it can."""
        del entry
        return ""

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the FP8 values of a matrix, ``(rows, columns)``, and its scales.

        The shape of the scales is `Quantization.scale_shape`.

        Args:
            weight: ``(rows, columns)``, finite.
        """
        from hybridize.compress.quantize.schemes.scales import quantize_matrix

        return quantize_matrix(weight, self.quantization.weights)

    def input_scale(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the static scale of inputs, ``(1,)``, given their largest magnitude, ``(1,)``."""
        from hybridize.compress.quantize.schemes.scales import largest_scale

        return largest_scale(largest, "tensor")

    def config(self, ignored: list[str]) -> dict[str, Any]:
        """Return ``quantization_config`` for config.json, validated by compressed-tensors.

        Args:
            ignored: patterns of the modules that are not quantized.
        """
        from compressed_tensors.config import CompressionFormat
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            QuantizationStatus,
        )

        common = {"num_bits": 8, "type": "float", "symmetric": True}
        group = QuantizationScheme(
            targets=["Linear"],
            weights=QuantizationArgs(**common, **self.weight_args, dynamic=False),
            input_activations=QuantizationArgs(**common, **self.input_args),
        )
        whole = QuantizationConfig(
            config_groups={"group_0": group},
            format=CompressionFormat.float_quantized.value,
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=ignored,
        )
        written: dict[str, Any] = whole.model_dump(mode="json", exclude_none=True)
        return written
