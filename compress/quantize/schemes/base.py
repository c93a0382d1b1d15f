"""What a scheme is: how finely weights and activations are scaled."""

from abc import ABC
from typing import Any, ClassVar

import torch

from hybridize.checkpoints.formats import Entry
from hybridize.checkpoints.quantization import Quantization
from hybridize.kernels import fp8_quantize, fp8_scale

_ROWS = 1024  # at a time; whole blocks
_TRIED = 8  # scales of a row
_SAMPLE = 512  # columns of a row, about, that they are compared on


class Scheme(ABC):
    """A way to hold linear layers in FP8.

    Attributes:
        name: what ``--scheme`` calls it.
        quantization: granularities, in this package's words.
        weight_args, input_args: the same in the words of compressed-tensors'
            ``QuantizationArgs``, beside what all FP8 has in common.
    """

    name: ClassVar[str]
    quantization: ClassVar[Quantization]
    weight_args: ClassVar[dict[str, Any]]
    input_args: ClassVar[dict[str, Any]]

    def obstacle(self, entry: Entry) -> str:
        """Return why a tensor on disk cannot be held so; empty if it can."""
        del entry
        return ""

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a matrix's FP8 numbers and scales.

        Scales are rounded up to bfloat16's digits and stored in float32: readers that hold
        scales in the model's dtype, as transformers does, then have the very same ones. A row's
        scale is the one, of some within an octave, that leaves the smallest squared error.

        Args:
            weight: ``(rows, columns)``, finite.
        """
        granularity = self.quantization.weights
        if granularity == "tensor":
            scale = _round_up(fp8_scale(weight, granularity))
            slabs = [(slab, scale) for slab in weight.split(_ROWS)]
        else:
            find = _best_row_scale if granularity == "row" else _largest_scale
            slabs = [(slab, find(slab, granularity)) for slab in weight.split(_ROWS)]
            scale = torch.cat([scale for _, scale in slabs])
        # The work is done in float32; a slab at a time keeps that small beside the matrix.
        values = [fp8_quantize(slab, granularity, scale=scale)[0] for slab, scale in slabs]
        return torch.cat(values), scale

    def input_scale(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the static scale, ``(1,)``, for inputs of a largest magnitude, ``(1,)``."""
        return _round_up(fp8_scale(largest, "tensor"))

    def config(self, ignored: list[str]) -> dict[str, Any]:
        """Return ``quantization_config`` for config.json, checked by compressed-tensors itself.

        Args:
            ignored: patterns of the modules that stay as they are.
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


def _largest_scale(slab: torch.Tensor, granularity: str) -> torch.Tensor:
    """Return the scales that put the largest numbers at the end of the grid."""
    return _round_up(fp8_scale(slab, granularity))


def _best_row_scale(slab: torch.Tensor, granularity: str) -> torch.Tensor:
    """Return each row's scale of the smallest squared error, over a sample of its columns.

    The grid is the same an octave further on, so that larger scales than twice the least have
    nothing to offer but larger gaps at zero.
    """
    least = fp8_scale(slab, granularity)
    sample = slab[:, :: max(1, slab.shape[1] // _SAMPLE)].float()
    best, smallest = _round_up(least), None
    for step in range(_TRIED):
        scale = _round_up(least * 2 ** (step / _TRIED))
        values, _ = fp8_quantize(sample, granularity, scale=scale)
        error = (values.float() * scale - sample).square().sum(1, keepdim=True)
        if smallest is None:
            smallest = error
            continue
        best = torch.where(error < smallest, scale, best)
        smallest = torch.minimum(error, smallest)
    return best


def _round_up(scale: torch.Tensor) -> torch.Tensor:
    """Return the least numbers that bfloat16 holds and that are not below ``scale``, positive."""
    bits = scale.float().contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)
