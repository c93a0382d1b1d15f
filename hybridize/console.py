"""What a person sees: messages and progress on stderr, tables and JSON on stdout.

Every command talks through the one ``console`` object below, so that ``--quiet``
and ``--json`` need no thought anywhere else.
"""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: float = 1) -> None:
        """Move the bar on by ``amount`` units."""


class _NoProgress:
    def advance(self, amount: float = 1) -> None:
        """Do nothing: nobody is watching."""


class Console:
    """Where the package prints.

    Attributes:
        quiet: no messages and no progress; errors, tables and JSON are still printed.
        json_mode: stdout carries the command's one JSON object and nothing else.
        debug: a failure is shown with its traceback.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.json_mode = False
        self.debug = False
        self._json_output: TextIO | None = None

    @contextmanager
    def only_json(self) -> Iterator[None]:
        """Keep stdout for ``json()``: whatever else is printed meanwhile goes to stderr.

        Libraries print to stdout as they please; a program that reads our JSON must not see it.
        """
        self.json_mode, self._json_output = True, sys.stdout
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self.json_mode, self._json_output = False, None

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Print neither messages nor progress meanwhile."""
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False

    def message(self, text: str) -> None:
        """Print one line of news to stderr, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print one line about a failure to stderr, quiet or not."""
        print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def json(self, value: Any) -> None:
        """Print the command's one JSON object to stdout."""
        import json

        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        print(text, file=self._json_output or sys.stdout, flush=True)

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
            title=title,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            title_style="bold",
            pad_edge=False,
        )
        for index, name in enumerate(columns):
            numeric = bool(rows) and all(_looks_numeric(row[index]) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        # A pipe has no width: print every column whole rather than at 80 characters.
        width = None if sys.stdout.isatty() else _NO_LIMIT
        RichConsole(file=sys.stdout, width=width, highlight=False).print(table)
        if caption is not None:
            # Below the table by itself: a table may be narrower than a sentence.
            print(textwrap.fill(caption, _CAPTION_WIDTH) + "\n")

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


_CAPTION_WIDTH = 100
_NO_LIMIT = 10_000  # characters: no table that people read is wider


def size_in_words(size: float) -> str:
    """Return a number of bytes as people say it, in powers of 1024: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


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
