"""The output directory: checking it before any work is done, and renaming the finished directory.

`writer` writes the files in between, into a working directory beside the output.
"""

import errno
import os
import shutil
import uuid
from pathlib import Path

from hybridize.checkpoints.files import sync
from hybridize.checkpoints.leftovers import PARTIAL, REPLACED
from hybridize.checkpoints.provenance import read_provenance
from hybridize.errors import InputError
from hybridize.interrupts import uninterrupted
from hybridize.output_files import follow_link, is_mount_point, unfinished


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Check that a directory can be written.

    Args:
        output: the directory.
        source: the checkpoint that the output is made from.
        force: replace an existing directory.

    Raises:
        InputError: the output exists and ``force`` is off, or it cannot be replaced; it is the
            source, contains it or is inside it; its parent cannot be written; or the source's
            ``hybridize.json``, whose records the output continues, cannot be read.
    """
    if output.name in ("", ".."):  # the finished directory is renamed to this name
        raise InputError(f"{output}: the output must end in the directory's own name")
    target = Path(os.path.realpath(follow_link(output)))
    if source is not None:
        read_provenance(source)  # fail now, not at the end of the run
    if source is not None and target in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{output}: is or contains the source; choose another output directory")
    if source is not None and source.resolve() in target.parents:
        raise InputError(f"{output}: is inside the source; choose another output directory")
    if os.path.isdir(target) and is_mount_point(target):
        raise InputError(
            f"{output}: is a mount point, which cannot be replaced; name a directory in it, such "
            f"as {output / 'hybrid'}"
        )
    if os.path.exists(target) and not force:
        raise InputError(f"{output}: exists already; `force` replaces it")
    if os.path.exists(target) and not target.is_dir():
        raise InputError(f"{output}: exists and is not a directory; choose another output")
    parent = next(p for p in target.parents if os.path.exists(p))
    if not parent.is_dir():
        raise InputError(f"{output}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: no permission to write in {parent}")
    if os.path.exists(target):
        check_movable(target, output)


def check_movable(directory: Path, shown: Path) -> None:
    """Check that an existing directory can be renamed, without renaming it.

    It is renamed to a directory that is not empty, which the operating system refuses in any case.
    But first it refuses what it cannot rename at all, such as a mount point, or a directory of a
    container's image (EXDEV).

    Args:
        directory: the directory.
        shown: its name for the message.

    Raises:
        InputError: the directory cannot be renamed.
    """
    probe = directory.with_name(f"{directory.name}.{PARTIAL}-{uuid.uuid4().hex[:8]}")
    unfinished.add(probe)
    try:
        (probe / "occupied").mkdir(parents=True)
        os.rename(directory, probe)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS):
            raise InputError(
                f"{shown}: cannot be replaced ({error.strerror}); delete it, or choose another "
                "output"
            ) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        unfinished.discard(probe)


def move_into_place(finished: Path, output: Path, *, force: bool) -> None:
    """Rename a finished directory to its final name, and sync the parent directory.

    Args:
        finished: the directory, synced, in the same parent directory as the output.
        output: the final name, or a link to it.
        force: replace an existing output. If the process is killed during this, ``output`` is the
            old or the new directory, or it is missing and the old one is ``OUTPUT.replaced-…``.
    """
    replaced, target = None, follow_link(output)
    with uninterrupted(f"{output} is complete"):
        if force and os.path.lexists(target):
            replaced = target.with_name(f"{target.name}.{REPLACED}-{uuid.uuid4().hex[:8]}")
        try:
            if replaced is not None:
                target.rename(replaced)
            finished.rename(target)
        except BaseException:
            if replaced is not None and not os.path.lexists(target):
                replaced.rename(target)
            raise
        sync(target.parent)
        if replaced is not None:
            shutil.rmtree(replaced)
