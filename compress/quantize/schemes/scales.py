"""Computes the scales of FP8 weights and of static inputs, and rounds the weights to FP8.

The kernel `fp8_quantize` computes dynamic scales of inputs while the model runs.
"""

import torch

from hybridize.kernels import fp8_quantize, fp8_scale

_SLAB_ROWS = 1024  # rows that are quantized at once; a multiple of the block size
_SCALES_TRIED = 8  # candidates for each row
_SAMPLE_COLUMNS = 512  # the candidates are compared on about this number of columns


def quantize_matrix(weight: torch.Tensor, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the FP8 values and the scales of a matrix.

    Scales are stored in float32, but rounded up to the precision of bfloat16. A program that
    converts the scales to the model's dtype, as transformers does, then uses exactly the same
    scales. For each row, several scales within a factor of two are tried, and the one with the
    smallest squared error is used.

    Args:
        weight: ``(rows, columns)``, finite.
        granularity: what shares a scale: ``tensor``, ``row`` or ``block``; see `Quantization`.

    Returns:
        The values, ``(rows, columns)`` in float8_e4m3fn, and the scales in float32, with the shape
        of `Quantization.scale_shape`.
    """
    if granularity == "tensor":
        scale = largest_scale(weight, granularity)
        slabs = [(slab, scale) for slab in weight.split(_SLAB_ROWS)]
    else:
        find = _best_row_scale if granularity == "row" else largest_scale
        slabs = [(slab, find(slab, granularity)) for slab in weight.split(_SLAB_ROWS)]
        scale = torch.cat([scale for _, scale in slabs])
    # Quantization needs float32 copies. One slab at a time keeps them small.
    values = [fp8_quantize(slab, granularity, scale=scale)[0] for slab, scale in slabs]
    return torch.cat(values), scale


def largest_scale(values: torch.Tensor, granularity: str) -> torch.Tensor:
    """Return the scales that map the largest magnitudes to the largest FP8 value."""
    return _round_up(fp8_scale(values, granularity))


def _best_row_scale(slab: torch.Tensor, granularity: str) -> torch.Tensor:
    """Return the scale of each row with the smallest squared error on a sample of its columns.

    The FP8 grid repeats itself when the scale doubles. Scales above twice the minimum are not
    tried, because they only widen the gaps near zero.
    """
    minimum = fp8_scale(slab, granularity)
    sample = slab[:, :: max(1, slab.shape[1] // _SAMPLE_COLUMNS)].float()
    best, smallest = _round_up(minimum), None
    for number in range(_SCALES_TRIED):
        scale = _round_up(minimum * 2 ** (number / _SCALES_TRIED))
        values, _ = fp8_quantize(sample, granularity, scale=scale)
        error = (values.float() * scale - sample).square().sum(1, keepdim=True)
        if smallest is None:
            smallest = error
            continue
        best = torch.where(error < smallest, scale, best)
        smallest = torch.minimum(error, smallest)
    return best


def _round_up(scale: torch.Tensor) -> torch.Tensor:
    """Return the smallest bfloat16 values that are not below positive ``scale``, as float32."""
    bits = scale.float().contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)
