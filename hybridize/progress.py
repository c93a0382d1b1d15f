"""The progress of a long step: a bar on a terminal, lines of text elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from typing_extensions import override

from hybridize.interrupts import check_stopped
from hybridize.units import duration_in_words, short_number, size_in_words


class Progress(Protocol):
    """Shows the progress of a long step."""

    def advance(self, amount: float = 1) -> None:
        """Report that ``amount`` more units are done."""


class NoProgress(Progress):
    """Shows nothing, for ``--quiet``."""

    @override
    def advance(self, amount: float = 1) -> None:
        check_stopped()


class ProgressLog(Progress):
    """Prints progress as lines of text to stderr.

    Args:
        description: what is being done.
        total: how many units the whole step has; None if that is not known.
        unit: ``"bytes"`` or a plural noun.
        completed: how many units an earlier, interrupted run has done.
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

    @override
    def advance(self, amount: float = 1) -> None:
        check_stopped()
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
        """Print the last line if the step took longer than `INTERVAL`."""
        seconds = self._seconds()
        if seconds > self.INTERVAL:
            done = f"{self._count(self._done)} in {duration_in_words(seconds)}"
            self._print(", ".join([done, *self._estimate()[:1]]))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Print lines on time, from a thread, even while no unit is completed."""
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
        """Return the rate and, if the total is known, the time left; nothing if no unit is done."""
        seconds, done = self._seconds(), self._done - self._before
        if seconds <= 0 or done <= 0:
            return []
        rate = done / seconds
        slow = rate < 0.1
        shown = f"{duration_in_words(1 / rate)} each" if slow else _rate(rate, self._unit)
        if self._total is None:
            return [shown]
        left = max(self._total - self._done, 0) / rate
        return [shown, f"{duration_in_words(left)} left"]

    def _count(self, amount: float, *, noun: bool = True) -> str:
        if self._unit == "bytes":
            return size_in_words(amount)
        return f"{amount:,.0f} {self._unit}" if noun else f"{amount:,.0f}"


def _rate(rate: float, unit: str) -> str:
    """Return units per second, such as ``1.5 GiB/s`` or ``64.0M parameters/s``."""
    return f"{size_in_words(rate) if unit == 'bytes' else f'{short_number(rate)} {unit}'}/s"


@contextmanager
def progress_bar(
    description: str, total: float | None, unit: str, completed: float
) -> Iterator[Progress]:
    """Show a progress bar on a terminal; see `Console.progress` for the arguments."""
    from rich import progress as rich_progress
    from rich.console import Console as RichConsole

    columns = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TransferSpeedColumn() if unit == "bytes" else _rate_column(unit),
        rich_progress.TimeRemainingColumn(),
    ]
    with rich_progress.Progress(*columns, console=RichConsole(stderr=True)) as bars:
        task = bars.add_task(description, total=total, completed=completed)  # type: ignore[arg-type]

        class Bar:
            def advance(self, amount: float = 1) -> None:
                check_stopped()
                bars.advance(task, amount)

        yield Bar()


def _rate_column(unit: str) -> Any:
    """Return a column of rich that shows units per second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(_rate(speed, unit) if speed else f"- {unit}/s")

    return Rate()
