"""One scale per weight and one per layer's input: Nemotron-H's FP8 (arXiv 2504.03624)."""

from hybridize.checkpoints.quantization import Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8Tensor(Scheme):
    """Weights have one scale. Activations have one static scale, from the calibration text."""

    quantization = Quantization(weights="tensor", activations="tensor", static=True)
    weight_args = {"strategy": "tensor"}  # noqa: RUF012
    input_args = {"strategy": "tensor", "dynamic": False}  # noqa: RUF012
