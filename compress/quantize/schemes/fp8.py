"""A scale per row of a weight and per token: the most precise that hardware multiplies fast."""

from hybridize.checkpoints.quantization import Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8(Scheme):
    """Weights per output channel; activations per token, from each input as it comes."""

    name = "fp8"
    quantization = Quantization(weights="row", activations="row", static=False)
    weight_args = {"strategy": "channel"}  # noqa: RUF012
    input_args = {"strategy": "token", "dynamic": True}  # noqa: RUF012
