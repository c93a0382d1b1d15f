"""The directory beside an output in which a long run keeps what it has done, so as to go on."""

import json
import shutil
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import read_json_object
from hybridize.errors import InputError

_RECORD = "run.json"


def claim(work: Path, identity: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Make a working directory a run's own, or find it so.

    Args:
        work: the directory.
        identity: everything that decides what the run leaves there, as JSON holds it.
        resume: go on with what is there.
        force: remove what is there.

    Raises:
        InputError: it belongs to another run, or to this one, which is not to be resumed.
    """
    record = work / _RECORD
    if resume:
        if not record.exists():
            raise InputError(f"{work}: nothing to --resume there")
        theirs = read_json_object(record)
        different = [key for key in identity if theirs.get(key) != identity[key]]
        if different:
            raise InputError(
                f"{work}: belongs to another run (its {different[0]} differs); give the same "
                "options to --resume it, or --force to start anew"
            )
        return
    partial = record.with_suffix(".partial")
    # A run that was killed before its record was complete left nothing to go on with.
    if work.exists() and not set(work.iterdir()) <= {partial}:
        if not force:
            raise InputError(
                f"{work}: holds an interrupted run; --resume goes on with it, --force starts anew"
            )
        remove(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(identity, indent=2) + "\n")
        partial.replace(record)
    except OSError as error:
        raise InputError(f"{work}: cannot be made: {error.strerror}") from error


def remove(work: Path) -> None:
    """Remove a working directory, what makes it one last: a kill midway leaves one, or nothing."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _RECORD:
            path.unlink()
    shutil.rmtree(work)
