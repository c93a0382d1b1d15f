"""Checking, before any work is done, that an output directory can be written."""

import os
from pathlib import Path

from hybridize.checkpoints.provenance import read_provenance
from hybridize.errors import InputError


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Check that a directory can be written.

    Raises:
        InputError: it exists and ``force`` is off; it is the source, contains it or lies inside
            it; its parent cannot be written; or the source's ``hybridize.json``, which is
            continued in the output, cannot be read.
    """
    if output.name in ("", ".."):  # the new directory is made beside it and then renamed
        raise InputError(f"{output}: the output must end in the directory's own name")
    target = Path(os.path.realpath(output))  # unlike resolve(), accepts a link to itself
    if source is not None:
        read_provenance(source)  # an unreadable record must not stop the run at its end
    if source is not None and target in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{output}: is or contains the source; choose another output directory")
    if source is not None and source.resolve() in target.parents:
        raise InputError(f"{output}: lies inside the source; choose another output directory")
    if os.path.lexists(output) and not force:
        raise InputError(f"{output}: exists already; `force` replaces it")
    if os.path.exists(output) and not output.is_dir():
        raise InputError(f"{output}: exists and is not a directory; choose another output")
    parent = next(p for p in target.parents if os.path.exists(p))
    if not parent.is_dir():
        raise InputError(f"{output}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: no permission to write in {parent}")
