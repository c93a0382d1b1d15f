"""Find the checkpoints that a user names for an evaluation or a benchmark."""

from collections.abc import Sequence
from pathlib import Path

from hybridize.checkpoints.hub import resolve
from hybridize.errors import InputError


def find_checkpoints(
    models: str | Path | Sequence[str | Path], baseline: str | None
) -> dict[str, Path]:
    """Return the directory of each model by the name that the user gave, the baseline first.

    Args:
        models: checkpoint directories or hub ids.
        baseline: another model or one of ``models``; None for no baseline.

    Raises:
        InputError: there are no models, or a directory is not a checkpoint.
    """
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given:
        raise InputError("`models`: name at least one checkpoint")
    directories = {}
    for model in given if baseline is None else [baseline, *given]:
        directory = resolve(model)
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}: has no config.json; name a checkpoint's directory")
        directories[str(model)] = directory
    return directories
