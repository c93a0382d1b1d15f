"""``hybridize.json``: the commands that made a checkpoint, one record each.

A record has ``command``, ``options``, ``seed``, ``versions``, ``created`` (UTC), ``source`` (a name
and the SHA-256 of its files) and ``metrics``. The file lists the records under ``steps``, the
oldest first. ``files`` lists the sizes and hashes of the files that the last command wrote, for
`verify`. `hybridize.checkpoints.writer` writes the file together with the checkpoint.
"""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import PROVENANCE, read_json_object
from hybridize.errors import InputError

_FORMAT_VERSION = 1


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
    try:  # the records are copied into every result, as JSON in UTF-8
        json.dumps(records, ensure_ascii=False, allow_nan=False).encode()
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


def source_name(model: str | Path) -> str:
    """Return a source's name for records, without local paths: a hub id or a directory's name."""
    return Path(model).resolve().name if Path(model).exists() else str(model)
