"""One scale per row of a weight and one per token: the finest that GPUs multiply at full speed."""

from hybridize.checkpoints.quantization import Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8(Scheme):
    """Weights have a scale per output channel. Activations have a dynamic scale per token."""

    quantization = Quantization(weights="row", activations="row", static=False)
    weight_args = {"strategy": "channel"}  # noqa: RUF012
    input_args = {"strategy": "token", "dynamic": True}  # noqa: RUF012
