"""Scales per 128 x 128 block and per 128 channels (DeepSeek-V3, arXiv 2412.19437)."""

from typing_extensions import override

from hybridize.checkpoints.formats import Entry
from hybridize.checkpoints.quantization import TILE, Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8Block(Scheme):
    """Weights have a scale per 128 x 128 block, activations a dynamic scale per 1 x 128."""

    quantization = Quantization(weights="block", activations="group", static=False)
    weight_args = {"strategy": "block", "block_structure": [TILE, TILE]}  # noqa: RUF012
    input_args = {"strategy": "group", "group_size": TILE, "dynamic": True}  # noqa: RUF012

    @override
    def obstacle(self, entry: Entry) -> str:
        # vLLM and compressed-tensors support whole groups of columns only.
        if entry.shape[1] % TILE:
            return f"its {entry.shape[1]} columns are not a multiple of {TILE}"
        if len(entry.parameters) > 1 and any(rows % TILE for rows in entry.rows):
            return f"its parts of {entry.rows[0]} rows are not a multiple of {TILE}"
        return ""
