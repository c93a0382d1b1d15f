"""All output of the package: messages and progress on stderr, tables and JSON on stdout.

Everything is printed through the one ``console`` object below, which knows about ``--quiet`` and
``--json``.
"""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from hybridize.file_names import utf8
from hybridize.progress import NoProgress, Progress, ProgressLog, progress_bar


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
        self._notes: set[str] = set()

    @contextmanager
    def only_json(self) -> Iterator[None]:
        """Reserve stdout for ``json()``; all other output to stdout goes to stderr.

        Libraries may print to stdout at any time. A program that reads our JSON must not see that.
        """
        self.json_mode, self._json_output = True, sys.stdout
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self.json_mode, self._json_output = False, None

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Print neither messages nor progress inside the block."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def message(self, text: str) -> None:
        """Print one line to stderr, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print one line about an input to stderr, once per process, unless quiet.

        A command may open the same input several times.
        """
        if not self.quiet and text not in self._notes:
            self._notes.add(text)
            self.message(f"note: {text}")

    def error(self, text: str) -> None:
        """Print one line about a failure to stderr, even if quiet."""
        print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def notice(self, text: str) -> None:
        """Print one line to stderr, even if quiet."""
        print(" ".join(text.split()), file=sys.stderr, flush=True)

    def json(self, value: Any) -> None:
        """Print the command's one JSON object to stdout."""
        import json

        output = self._json_output or sys.stdout
        # Characters that the encoding lacks are escaped, not replaced as in tables.
        is_utf8 = (output.encoding or "utf-8").lower().replace("-", "") == "utf8"
        text = json.dumps(value, indent=2, ensure_ascii=not is_utf8, allow_nan=False)
        text = utf8(text).decode()  # escapes what is left of names that are not UTF-8
        print(text, file=output, flush=True)

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
        # A pipe has no width: print whole columns instead of wrapping them at 80 characters.
        width = None if sys.stdout.isatty() else _NO_LIMIT
        RichConsole(file=sys.stdout, width=width, highlight=False).print(table)
        if caption is not None:
            # Not rich's caption, which wraps at the width of the table.
            print(textwrap.fill(caption, _CAPTION_WIDTH) + "\n")

    @contextmanager
    def progress(
        self, description: str, total: float | None, unit: str, *, completed: float = 0
    ) -> Iterator[Progress]:
        """Show the progress of a long step on stderr, with its rate and the time left.

        A terminal gets a progress bar. Anything else, such as a log file, gets lines of text: the
        first one after two seconds, then one a minute, and one at the end of a step that took
        longer than a minute. Nothing is shown if quiet.

        Args:
            description: what is being done, in a word or two.
            total: how many units the whole step has; None if that is not known.
            unit: what is counted: ``"bytes"`` (shown as KiB, MiB, …) or a plural noun.
            completed: how many units an earlier, interrupted run has done.
        """
        if self.quiet:
            yield NoProgress()
        elif sys.stderr.isatty():
            with progress_bar(description, total, unit, completed) as bar:
                yield bar
        else:
            log = ProgressLog(description, total, unit, completed=completed)
            with log.running():
                yield log


_CAPTION_WIDTH = 100
_NO_LIMIT = 10_000  # characters; wider than any table


def _looks_numeric(cell: object) -> bool:
    text = str(cell).strip()
    return text in ("", "-") or text[:1].isdigit() or text[:2].strip("+-.±")[:1].isdigit()


console = Console()
