"""The working directory beside an output, from which an interrupted run can be resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import read_json_object
from hybridize.errors import InputError

_RECORD = "run.json"


def claim(work: Path, identity: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Create a run's working directory, or check that an interrupted run can be resumed.

    Args:
        work: the directory.
        identity: everything that the contents of the directory depend on, as JSON values.
        resume: whether to continue the run in the directory.
        force: whether to delete an existing directory.

    Raises:
        InputError: the directory belongs to another run, or ``resume`` or ``force`` is needed.
    """
    record = work / _RECORD
    if resume:
        if not record.exists():
            raise InputError(f"{work}: no interrupted run that `resume=True` could continue")
        recorded = read_json_object(record)
        different = [key for key in identity if recorded.get(key) != identity[key]]
        if different:
            raise InputError(
                f"{work}: belongs to another run (different {different[0]}); give the same "
                "options to resume it, or `force=True` to start again"
            )
        return
    partial = record.with_suffix(".partial")
    # A run that was killed before its record was complete has nothing to resume.
    if work.exists() and not set(work.iterdir()) <= {partial}:
        if not force:
            raise InputError(
                f"{work}: contains an interrupted run; `resume=True` continues it, `force=True` "
                "starts again"
            )
        remove(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(identity, indent=2) + "\n")
        partial.replace(record)
    except OSError as error:
        raise InputError(f"{work}: cannot be created: {error.strerror}") from error


def remove(work: Path) -> None:
    """Delete a working directory, `run.json` last, so that an interrupted delete can be retried."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _RECORD:
            path.unlink()
    shutil.rmtree(work)
