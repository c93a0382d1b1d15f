"""What a person sees: messages and progress on stderr, tables and JSON on stdout.

All commands print through the one ``console`` object below, which knows about ``--quiet`` and
``--json``.
"""

import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """How far a long step is."""

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` units to what is done."""


class _NoProgress:
    def advance(self, amount: float = 1) -> None:
        """Do nothing."""


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

    def error(self, text: str) -> None:
        """Print one line about a failure to stderr, even if quiet."""
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
        """Show on stderr how far a long step is, with its rate and the time left.

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
            yield _NoProgress()
        elif sys.stderr.isatty():
            with _progress_bar(description, total, unit, completed) as bar:
                yield bar
        else:
            log = ProgressLog(description, total, unit, completed=completed)
            with log.running():
                yield log


_CAPTION_WIDTH = 100
_NO_LIMIT = 10_000  # characters; wider than any table


class ProgressLog:
    """Progress as lines of text.

    Args:
        description: what is being done.
        total: how many units the whole step has; None if that is not known.
        unit: ``"bytes"`` or a plural noun.
        completed: how many units were done before.
        clock: returns the time in seconds.
    """

    FIRST_LINE = 2.0
    """Seconds before the first line. A step that ends earlier prints nothing."""

    INTERVAL = 60.0
    """Seconds between lines, and the shortest step that gets a line at its end."""

    def __init__(
        self,
        description: str,
        total: float | None,
        unit: str,
        *,
        completed: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._before = self._done = completed
        self._clock = clock
        self._started = clock()
        self._next_line = self._started + self.FIRST_LINE
        self._lock = threading.Lock()

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` units to what is done, and print a line if one is due."""
        self._done += amount
        self.print_if_due()

    def print_if_due(self) -> None:
        """Print a line if enough time has passed since the last one."""
        with self._lock:
            if self._clock() < self._next_line:
                return
            self._next_line = self._clock() + self.INTERVAL
            self._print(", ".join([self._fraction(), *self._estimate()]))

    def print_end(self) -> None:
        """Print the last line if the step took long."""
        seconds = self._seconds()
        if seconds > self.INTERVAL:
            done = f"{self._count(self._done)} in {duration_in_words(seconds)}"
            self._print(", ".join([done, *self._estimate()[:1]]))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Print lines on time even while no unit is completed."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(self._next_line - self._clock(), 0.01)):
                self.print_if_due()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        self.print_end()

    def _seconds(self) -> float:
        return self._clock() - self._started

    def _print(self, text: str) -> None:
        print(f"{self._description}: {text}", file=sys.stderr, flush=True)

    def _fraction(self) -> str:
        if self._total is None:
            return f"{self._count(self._done)} in {duration_in_words(self._seconds())}"
        percent = f" ({self._done / self._total:.0%})" if self._total else ""
        return f"{self._count(self._done, noun=False)} of {self._count(self._total)}{percent}"

    def _estimate(self) -> list[str]:
        """Return the rate and the time left, where something is done."""
        seconds, done = self._seconds(), self._done - self._before
        if seconds <= 0 or done <= 0:
            return []
        rate = done / seconds
        if rate >= 0.1:
            shown = f"{self._count(rate, digits=1)}/s"
        else:
            shown = f"{duration_in_words(1 / rate)} each"
        if self._total is None:
            return [shown]
        left = max(self._total - self._done, 0) / rate
        return [shown, f"{duration_in_words(left)} left"]

    def _count(self, amount: float, *, noun: bool = True, digits: int = 0) -> str:
        if self._unit == "bytes":
            return size_in_words(amount)
        return f"{amount:,.{digits}f} {self._unit}" if noun else f"{amount:,.{digits}f}"


@contextmanager
def _progress_bar(
    description: str, total: float | None, unit: str, completed: float
) -> Iterator[Progress]:
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
        task = bars.add_task(description, total=total, completed=completed)  # type: ignore[arg-type]

        class Bar:
            def advance(self, amount: float = 1) -> None:
                bars.advance(task, amount)

        yield Bar()


def size_in_words(size: float) -> str:
    """Return a number of bytes in powers of 1024, such as ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_in_words(seconds: float) -> str:
    """Return a duration such as ``40 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _looks_numeric(cell: object) -> bool:
    text = str(cell).strip()
    return text in ("", "-") or text[:1].isdigit() or text[:2].strip("+-.±")[:1].isdigit()


def _RateColumn(unit: str) -> Any:  # noqa: N802 - a factory that stands for a class
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"- {unit}/s")

    return Rate()


console = Console()
