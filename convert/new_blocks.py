"""The values of new blocks: made from attention, at random, or copied from another hybrid.

Torch is imported when the first value is made.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hybridize.conversion.config import ConvertConfig
from hybridize.conversion.donor import Donor
from hybridize.conversion.measurements import BlockError, CalibrationCost
from hybridize.conversion.source import Source
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import MambaSizes

if TYPE_CHECKING:
    import torch

    from hybridize.conversion.calibration import Calibrator
    from hybridize.data.packing import PackedDataset


class NewBlocks:
    """Makes the values of new blocks: from attention, at random, or from another hybrid.

    Args:
        source: the checkpoint that is converted.
        config: the options.
        dataset: the calibration text; None if the blocks are not calibrated.
        device: where blocks are calibrated; None if they are not.
        stack: closes the files of the other hybrid at its end.

    Raises:
        InputError: the other hybrid cannot be read, or the calibration text is too short.
    """

    def __init__(
        self,
        source: Source,
        config: ConvertConfig,
        dataset: "PackedDataset | None",
        device: "torch.device | None",
        stack: ExitStack,
    ) -> None:
        self._source, self._config = source, config
        self._dataset, self._device = dataset, device
        self._donor: Donor | None = None
        self._calibrators: dict[str, Calibrator] = {}
        if config.from_hybrid:
            self._donor = stack.enter_context(Donor(Path(config.init), source.config))
        elif dataset is not None:
            # The selection fits each block to the unchanged model, because it does not know yet
            # which blocks will be swapped.
            self._calibrators["student"] = self._make_calibrator("student")
            if config.measures_swaps:
                self._calibrators["teacher"] = self._make_calibrator("teacher")

    def _make_calibrator(self, inputs: Literal["teacher", "student"]) -> "Calibrator":
        from hybridize.conversion.calibration import Calibrator

        source = self._source
        assert self._dataset is not None
        assert self._device is not None
        return Calibrator(source.tensors, source.config, self._dataset, self._device, inputs=inputs)

    def values(self, index: int, sizes: MambaSizes) -> "dict[str, torch.Tensor]":
        """Return a new block's values for the result: name in the mixer to float32 tensor.

        Args:
            index: the block's index in the layout.
            sizes: its sizes.
        """
        return self._values(index, sizes, "student")

    def values_for_selection(self, index: int, sizes: MambaSizes) -> "dict[str, torch.Tensor]":
        """Return a new block's values if it is the only one, as `values` does."""
        return self._values(index, sizes, "teacher")

    def _values(self, index: int, sizes: MambaSizes, inputs: str) -> "dict[str, torch.Tensor]":
        if self._donor is not None:
            return self._donor.values(index, sizes)
        from hybridize.conversion.first_values import first_values

        source, config = self._source, self._config
        start = first_values(source.tensors, index, sizes, source.config, config.init, config.seed)
        if inputs not in self._calibrators:
            return start
        return self._calibrators[inputs].fit(index, sizes, start)

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """The errors of the calibrated blocks, in the order of the layout."""
        return self._calibrators["student"].errors if self._calibrators else ()

    @property
    def calibration_cost(self) -> CalibrationCost | None:
        """What the calibrations have cost; None without one."""
        costs = [calibrator.cost for calibrator in self._calibrators.values()]
        if not costs:
            return None
        forwards = [cost.forwards for cost in costs if cost.forwards is not None]
        return CalibrationCost(
            sum(forwards) if len(forwards) == len(costs) else None,
            sum(cost.seconds for cost in costs),
        )


def check_donor_directory(config: ConvertConfig) -> None:
    """Check that ``init`` is a directory, unless it names a method.

    Raises:
        InputError: the directory does not exist.
    """
    if config.from_hybrid and not Path(config.init).is_dir():
        raise InputError(
            f"`init={config.init}`: choose attention, random, or the directory of a hybrid"
        )
