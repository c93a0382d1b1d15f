"""The values of new blocks: made from attention, at random, or copied from another hybrid.

Torch is imported when the first value is made.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

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
        self._donor: Donor | None = None
        self._calibrator: Calibrator | None = None
        if config.from_hybrid:
            self._donor = stack.enter_context(Donor(Path(config.init), source.config))
        elif dataset is not None:
            assert device is not None
            self._calibrator = self._make_calibrator(dataset, device)

    def _make_calibrator(self, dataset: "PackedDataset", device: "torch.device") -> "Calibrator":
        from hybridize.conversion.calibration import Calibrator

        source = self._source
        # A selection with measurements needs the values twice: to measure and to write.
        remember = self._config.measures_swaps
        return Calibrator(source.tensors, source.config, dataset, device, remember=remember)

    def values(self, index: int, sizes: MambaSizes) -> "dict[str, torch.Tensor]":
        """Return a new block's values: name in the mixer to float32 tensor.

        Args:
            index: the block's index in the layout.
            sizes: its sizes.
        """
        if self._donor is not None:
            return self._donor.values(index, sizes)
        from hybridize.conversion.first_values import first_values

        source, config = self._source, self._config
        start = first_values(source.tensors, index, sizes, source.config, config.init, config.seed)
        return start if self._calibrator is None else self._calibrator.fit(index, sizes, start)

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """The errors of the calibrated blocks, in the order of the layout."""
        return () if self._calibrator is None else self._calibrator.errors

    @property
    def calibration_cost(self) -> CalibrationCost | None:
        """What the calibration has cost; None without one."""
        return None if self._calibrator is None else self._calibrator.cost


def check_donor_directory(config: ConvertConfig) -> None:
    """Check that ``init`` is a directory, unless it names a method.

    Raises:
        InputError: the directory does not exist.
    """
    if config.from_hybrid and not Path(config.init).is_dir():
        raise InputError(
            f"`init={config.init}`: choose attention, random, or the directory of a hybrid"
        )
