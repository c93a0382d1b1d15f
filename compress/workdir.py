"""The working directory beside an output, from which an interrupted run can be resumed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import read_json_object
from hybridize.errors import InputError
from hybridize.interrupts import INTERRUPTIONS, uninterrupted
from hybridize.output_files import follow_link, is_mount_point

_RECORD = "run.json"


def work_directory(output: Path, suffix: str) -> Path:
    """Return the working directory of an output: ``OUTPUT.SUFFIX``, or beside what it links to."""
    target = follow_link(output)
    return target.with_name(f"{target.name}.{suffix}")


@contextmanager
def resumable(work: Path) -> Iterator[None]:
    """Let the message of an interruption in the block say that the run can be resumed."""
    try:
        yield
    except INTERRUPTIONS as interruption:
        if (work / _RECORD).exists():
            interruption.add_note(f"the same command with `resume` continues from {work}")
        raise


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
    if os.path.lexists(work):
        if work.is_symlink() or not work.is_dir():
            raise InputError(f"{work}: is not a directory; delete it")
        if is_mount_point(work):  # it could not be deleted at the end
            raise InputError(f"{work}: is a mount point; mount the directory that contains it")
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
        with uninterrupted():
            work.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(identity, indent=2) + "\n", "utf-8")
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
