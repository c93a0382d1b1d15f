"""What a person sees: messages and progress on stderr, tables and JSON on stdout.

Every command talks through the one ``console`` object below, so that ``--quiet``
and ``--json`` need no thought anywhere else.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: float = 1) -> None:
        """Move the bar on by ``amount`` units."""


class _NoProgress:
    def advance(self, amount: float = 1) -> None:
        """Do nothing: nobody is watching."""


class Console:
    """Where the package prints. ``quiet`` silences stderr, ``json_mode`` leaves stdout to JSON."""

    def __init__(self) -> None:
        self.quiet = False
        self.json_mode = False

    def message(self, text: str) -> None:
        """Print one line of news to stderr, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print one line about a failure to stderr, quiet or not."""
        print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def json(self, value: Any) -> None:
        """Print the command's one JSON object to stdout."""
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str | None = None,
        caption: str | None = None,
    ) -> None:
        """Print a table to stdout, numbers right-aligned; nothing in JSON mode."""
        if self.json_mode:
            return
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left",
            caption_justify="left", title_style="bold", pad_edge=False,
        )  # fmt: skip
        for index, name in enumerate(columns):
            numeric = bool(rows) and all(_looks_numeric(row[index]) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        # A pipe has no width: print every column whole rather than at 80 characters.
        width = None if sys.stdout.isatty() else 160
        RichConsole(file=sys.stdout, width=width, highlight=False).print(table)

    @contextmanager
    def progress(self, description: str, total: float, unit: str) -> Iterator[Progress]:
        """Show a bar with rate and time left while stderr is a terminal.

        Args:
            description: what is being done, in a word or two.
            total: how many units the whole job has.
            unit: what is counted: ``"bytes"`` (shown as MB/s) or a plural noun.
        """
        if self.quiet or not sys.stderr.isatty():
            yield _NoProgress()
            return
        from rich import progress as rich_progress
        from rich.console import Console as RichConsole

        columns = [
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TransferSpeedColumn() if unit == "bytes" else _RateColumn(unit),
            rich_progress.TimeRemainingColumn(),
        ]
        with rich_progress.Progress(*columns, console=RichConsole(stderr=True)) as bars:
            task = bars.add_task(description, total=total)

            class Bar:
                def advance(self, amount: float = 1) -> None:
                    bars.advance(task, amount)

            yield Bar()


def _looks_numeric(cell: object) -> bool:
    text = str(cell).strip()
    return text in ("", "-") or text[:1].isdigit() or text[:2].strip("+-.±")[:1].isdigit()


def _RateColumn(unit: str) -> Any:  # noqa: N802 - a factory standing in for a class
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"- {unit}/s")

    return Rate()


console = Console()
