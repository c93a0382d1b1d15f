"""The output directory: checking it before any work is done, and renaming the finished directory.

`writer` writes the files in between, into a working directory beside the output.
"""

import os
import shutil
import uuid
from pathlib import Path

from hybridize.checkpoints.files import sync
from hybridize.checkpoints.leftovers import REPLACED
from hybridize.checkpoints.provenance import read_provenance
from hybridize.errors import InputError


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Check that a directory can be written.

    Args:
        output: the directory.
        source: the checkpoint that the output is made from.
        force: replace an existing directory.

    Raises:
        InputError: the output exists and ``force`` is off; it is the source, contains it or is
            inside it; its parent cannot be written; or the source's ``hybridize.json``, whose
            records the output continues, cannot be read.
    """
    if output.name in ("", ".."):  # the finished directory is renamed to this name
        raise InputError(f"{output}: the output must end in the directory's own name")
    target = Path(os.path.realpath(output))  # unlike resolve(), accepts a link to itself
    if source is not None:
        read_provenance(source)  # fail now, not at the end of the run
    if source is not None and target in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{output}: is or contains the source; choose another output directory")
    if source is not None and source.resolve() in target.parents:
        raise InputError(f"{output}: is inside the source; choose another output directory")
    if os.path.lexists(output) and not force:
        raise InputError(f"{output}: exists already; `force` replaces it")
    if os.path.exists(output) and not output.is_dir():
        raise InputError(f"{output}: exists and is not a directory; choose another output")
    parent = next(p for p in target.parents if os.path.exists(p))
    if not parent.is_dir():
        raise InputError(f"{output}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: no permission to write in {parent}")


def move_into_place(finished: Path, output: Path, *, force: bool) -> None:
    """Rename a finished directory to its final name, and sync the parent directory.

    Args:
        finished: the directory, synced, in the same parent directory as the output.
        output: the final name.
        force: replace an existing output. If the process is killed during this, ``output`` is the
            old or the new directory, or it is missing and the old one is ``OUTPUT.replaced-…``.
    """
    replaced = None
    if force and os.path.lexists(output):
        replaced = output.with_name(f"{output.name}.{REPLACED}-{uuid.uuid4().hex[:8]}")
    try:
        if replaced is not None:
            output.rename(replaced)
        finished.rename(output)
    except BaseException:
        if replaced is not None and not os.path.lexists(output):
            replaced.rename(output)
        raise
    sync(output.parent)
    if replaced is not None:
        if replaced.is_symlink():
            replaced.unlink()
        else:
            shutil.rmtree(replaced)
