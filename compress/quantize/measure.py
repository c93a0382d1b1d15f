"""Measures the largest inputs and the cost of each block on the calibration text."""

from collections.abc import Sequence
from pathlib import Path

from hybridize.checkpoints.tensors import Tensors
from hybridize.compress.quantize.config import QuantizeConfig
from hybridize.compress.quantize.input_ranges import input_maxima
from hybridize.compress.quantize.kept_blocks import Keep
from hybridize.compress.quantize.plan import Measurements
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.sensitivity import measure_blocks
from hybridize.compress.quantize.targets import Target
from hybridize.data.calibration import load_calibration
from hybridize.data.sources import TEACHER
from hybridize.modeling.devices import choose_device
from hybridize.modeling.model_spec import ModelSpec


def measure(
    source: Path,
    tensors: Tensors,
    config: ModelSpec,
    scheme: Scheme,
    targets: Sequence[Target],
    keep: Keep,
    options: QuantizeConfig,
) -> Measurements:
    """Measure the largest inputs for a static scheme, and the cost of each block for a budget.

    Args:
        source: the checkpoint's directory.
        tensors, config: its tensors and its configuration.
        scheme: the scheme.
        targets: the linear layers, see `find_targets`.
        keep: the numbers of blocks to keep; the cost of each block is measured for a budget.
        options: the options of `quantize`.

    Raises:
        InputError: the text cannot be read, or the inputs of a layer have no scale.
    """
    device = choose_device(options.device)
    dataset = load_calibration(
        options.calibration or TEACHER,
        model=source,
        config=config,
        tokens=options.calibration_tokens,
        seed=options.seed,
        device=device,
    )
    maxima = input_maxima(tensors, config, dataset, device) if scheme.quantization.static else {}
    costs: dict[int, float] = {}
    if keep.budget is not None:
        costs = measure_blocks(source, scheme, targets, maxima, dataset, device)
    return Measurements(maxima, costs)
