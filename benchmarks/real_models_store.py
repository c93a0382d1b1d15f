"""The results of `real_models.py`: one JSON file, to which every figure is added when it exists.

Several processes may add to one file. Each change reads the file, changes one row, and replaces
the file, under a lock that the operating system releases when the process ends.
"""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridize.output_files import write_atomically

Row = dict[str, Any]

IDENTITY = ("arm", "share", "tokens")
"""The fields that identify a row."""

ORIGINAL: Row = {"arm": "original", "share": "100%", "tokens": 0, "recipe": None}
"""The row of the model that is converted."""


class Store:
    """The results in one file.

    Args:
        path: the JSON file; it need not exist.
        locks: a directory for the lock.
    """

    def __init__(self, path: Path, locks: Path) -> None:
        self.path, self._lock = path, locks / f"{path.name}.lock"

    def read(self) -> dict[str, Any]:
        """Return the whole content; without rows if there is no file yet."""
        if not self.path.exists():
            return {"benchmark": "real_models", "rows": []}
        content: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        return content

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Check that earlier rows have the same settings; store the settings of a new file.

        Raises:
            SystemExit: a setting differs.
        """

        def check(content: dict[str, Any]) -> None:
            known = content.setdefault("settings", settings)
            for name, value in settings.items():
                if known.get(name) != value:
                    raise SystemExit(
                        f"{self.path}: its rows have {name} {known.get(name)!r}, not {value!r}; "
                        "give the same options, or another --name"
                    )

        self.update(check)

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Apply a change to the content, and replace the file."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._lock):
            content = self.read()
            change(content)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(content, indent=1) + "\n")

    def row(self, identity: Row) -> Row:
        """Return the row with this identity and recipe; only the identity if there is none."""
        return find(self.read()["rows"], identity) or dict(identity)

    def add(self, identity: Row, part: str, value: Any) -> None:
        """Add one part to a row. It replaces a row of the same name with another recipe."""

        def add(content: dict[str, Any]) -> None:
            rows = content["rows"]
            row = find(rows, identity)
            if row is None:
                rows[:] = [other for other in rows if _key(other) != _key(identity)]
                row = dict(identity)
                rows.append(row)
            row[part] = value

        self.update(add)


def find(rows: list[Row], identity: Row) -> Row | None:
    """Return the row with an identity and its recipe; None if there is none."""
    for row in rows:
        if _key(row) == _key(identity) and row["recipe"] == identity["recipe"]:
            return row
    return None


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock inside the block; yield whether it was obtained.

    Args:
        path: the lock's file, which is created.
        wait: whether to wait for another process that holds the lock.
    """
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
