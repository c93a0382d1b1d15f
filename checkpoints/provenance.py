"""``hybridize.json``: the commands that made a checkpoint, one record each.

A record has ``command``, ``options``, ``seed``, ``versions``, ``created`` (UTC), ``source`` (a
name, the commit if it came from the hub, and the SHA-256 of its files) and ``metrics``. The file
lists the records under ``steps``, the oldest first. ``files`` lists the sizes and hashes of the
files that the last command wrote, for `verify`. `hybridize.checkpoints.writer` writes the file
together with the checkpoint.
"""

import json
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import PROVENANCE, read_json_object
from hybridize.errors import InputError

_FORMAT_VERSION = 1
_SNAPSHOT = re.compile(
    r"/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})$"
)


def read_provenance(directory: Path) -> list[dict[str, Any]]:
    """Return the records of the commands that made a checkpoint, the oldest first.

    The list is empty if the checkpoint has no ``hybridize.json``.

    Raises:
        InputError: the file is damaged, or another version of hybridize wrote it.
    """
    path = directory / PROVENANCE
    if not path.exists():
        return []
    content = read_json_object(path)
    records = content.get("steps")
    if content.get("format_version") != _FORMAT_VERSION or not isinstance(records, list):
        raise InputError(
            f"{path}: this version of hybridize cannot read it; delete it to continue without the "
            "history"
        )
    for record in records:
        named = isinstance(record, dict) and isinstance(record.get("source"), dict)
        if not named or not {"command", "created"} <= set(record) or "name" not in record["source"]:
            raise InputError(f"{path}: a record lacks its command, source or time")
    try:  # the records are copied into every result
        json.dumps(records, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its content cannot be written again: {error}") from error
    return records


def new_provenance(
    source: Path | None, record: dict[str, Any], files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the contents of ``hybridize.json`` for a result.

    Args:
        source: the checkpoint that the result was made from; the new file starts with its records.
        record: the record of this command, without versions and time.
        files: ``sha256`` and ``bytes`` of every file that was written, by name.
    """
    versions = {name: version(name) for name in ("hybridize", "torch", "transformers")}
    stamped = {
        **record,
        "versions": {**versions, "python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    earlier = [] if source is None else read_provenance(source)
    return {"format_version": _FORMAT_VERSION, "steps": [*earlier, stamped], "files": files}


def describe_source(directory: Path, sha256: dict[str, str]) -> dict[str, Any]:
    """Return a record's entry for the checkpoint that a result was made from.

    Args:
        directory: the checkpoint. If it is in the cache of the hub, the entry names the repository
            and the commit, else the directory without its path.
        sha256: the hashes of its weight files by name.
    """
    commit = hub_commit(directory)
    revision = {} if commit is None else {"revision": commit[1]}
    return {"name": source_name(directory), **revision, "sha256": sha256}


def source_name(directory: Path) -> str:
    """Return a checkpoint's name without local paths: its hub id, or its directory's name."""
    commit = hub_commit(directory)
    return directory.resolve().name if commit is None else commit[0]


def hub_commit(directory: Path) -> tuple[str, str] | None:
    """Return the repository and the commit of a directory in the cache of the hub, else None."""
    found = _SNAPSHOT.search(directory.resolve().as_posix())
    return None if found is None else (f"{found['owner']}/{found['name']}", found["commit"])
