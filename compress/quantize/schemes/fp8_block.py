"""A scale per block of a weight and per 128 columns of a token (DeepSeek-V3, arXiv 2412.19437)."""

from hybridize.checkpoints.formats import Entry
from hybridize.checkpoints.quantization import TILE, Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8Block(Scheme):
    """Weights per 128 x 128; activations per 1 x 128, from each input as it comes."""

    name = "fp8-block"
    quantization = Quantization(weights="block", activations="group", static=False)
    weight_args = {"strategy": "block", "block_structure": [TILE, TILE]}  # noqa: RUF012
    input_args = {"strategy": "group", "group_size": TILE, "dynamic": True}  # noqa: RUF012

    def obstacle(self, entry: Entry) -> str:
        """See `Scheme.obstacle`: vLLM and compressed-tensors take whole groups of columns."""
        if entry.shape[1] % TILE:
            return f"{entry.shape[1]} columns are no multiple of {TILE}"
        if len(entry.ours) > 1 and any(rows % TILE for rows in entry.rows):
            return f"parts of {entry.rows[0]} rows are no multiple of {TILE}"
        return ""
