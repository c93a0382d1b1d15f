"""The source of a conversion: a checkpoint, open for reading."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.config_only_reader import open_for_planning
from hybridize.checkpoints.formats import Format, read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.modeling.model_spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """The checkpoint that is converted.

    Attributes:
        directory: its directory.
        reader: reads its files.
        format: its on-disk architecture.
        config: its configuration.
        tensors: its tensors, under hybridize's names.
    """

    directory: Path
    reader: CheckpointReader
    format: Format
    config: ModelSpec
    tensors: CheckpointTensors


def open_source(
    model: str | Path, stack: ExitStack, *, config_is_enough: bool, allow_nonfinite: bool
) -> Source:
    """Open a checkpoint, or download it first if ``model`` is a hub id.

    Args:
        model: a directory or a hub id.
        stack: closes the files at its end.
        config_is_enough: read the configuration only; the weights may be missing.
        allow_nonfinite: accept NaN and infinity in the weights.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    reader = stack.enter_context(
        open_for_planning(model)
        if config_is_enough
        else CheckpointReader(resolve(model), allow_nonfinite=allow_nonfinite)
    )
    format_, config = read_config(reader)
    return Source(
        reader.directory, reader, format_, config, CheckpointTensors(reader, format_, config)
    )
