"""What was done to a checkpoint: ``hybridize.json``, one step per command.

A step has ``command``, ``options``, ``seed``, ``versions``, ``created`` (UTC), ``source`` (a name
and the SHA-256 of its files) and ``metrics``. Beside the steps, ``files`` lists what the last
of them wrote, with sizes and hashes, for `verify`.
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
    """Return the steps that led to a checkpoint, the oldest first; none if none are on record.

    Raises:
        InputError: a record that cannot be understood.
    """
    path = directory / PROVENANCE
    if not path.exists():
        return []
    record = read_json_object(path)
    steps = record.get("steps")
    if record.get("format_version") != _FORMAT_VERSION or not isinstance(steps, list):
        raise InputError(
            f"{path}: not a record that this version writes; delete it to go on without the history"
        )
    for step in steps:
        named = isinstance(step, dict) and isinstance(step.get("source"), dict)
        if not named or not {"command", "created"} <= set(step) or "name" not in step["source"]:
            raise InputError(f"{path}: a step lacks its command, source or time")
    try:  # results carry the steps on, as JSON in UTF-8
        json.dumps(steps, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: holds what cannot be written again: {error}") from error
    return steps


def new_record(
    source: Path | None, step: dict[str, Any], files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the contents of ``hybridize.json`` for a result.

    Args:
        source: the checkpoint that was worked on, whose steps come first.
        step: this step, without versions and time.
        files: name to ``sha256`` and ``bytes`` of every file that was written.
    """
    versions = {name: version(name) for name in ("hybridize", "torch", "transformers")}
    stamped = {
        **step,
        "versions": {**versions, "python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    earlier = [] if source is None else read_provenance(source)
    return {"format_version": _FORMAT_VERSION, "steps": [*earlier, stamped], "files": files}
