"""One scale per weight and one per layer's input: Nemotron-H's FP8 (arXiv 2504.03624)."""

from hybridize.checkpoints.quantization import Quantization
from hybridize.compress.quantize.schemes.base import Scheme


class FP8Tensor(Scheme):
    """Weights per tensor; activations per tensor, from the largest that calibration met."""

    name = "fp8-tensor"
    quantization = Quantization(weights="tensor", activations="tensor", static=True)
    weight_args = {"strategy": "tensor"}  # noqa: RUF012
    input_args = {"strategy": "tensor", "dynamic": False}  # noqa: RUF012
