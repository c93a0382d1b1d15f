"""Runs the command line in this process, with limits, and captures all output."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import StreamHandler
from pathlib import Path

from hybridize.__main__ import main

SECONDS = 60  # CPU time, which does not depend on how busy the machine is
WAITING = 900  # wall-clock seconds, for commands that wait without computing
MEMORY = 4 << 30  # bytes of address space, in addition to what the process has already


class OvertimeError(BaseException):
    """A command took longer than `SECONDS`. A BaseException, so that no handler catches it."""


@dataclass(frozen=True)
class Finished:
    """The exit code of a command, and its output on both streams."""

    code: int
    out: str
    err: str


def run(arguments: Sequence[str], directory: Path) -> Finished:
    """Run ``hybridize`` with ``arguments`` in ``directory``.

    Raises:
        OvertimeError: the command took too long.
    """
    with _inside(directory), _guarded(), _caught() as caught, _quiet_libraries():
        try:
            code = main(list(arguments))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
    return Finished(code, *caught)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Make transformers as quiet as in a process of the command's own; see `__main__`."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    # pytest's own handler is a subclass, and has other loggers too.
    handlers = [h for h in logging.get_logger().handlers if type(h) is StreamHandler]
    streams = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream or sys.stderr)


@contextlib.contextmanager
def _inside(directory: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _caught() -> Iterator[list[str]]:
    """Capture both file descriptors, because libraries in Rust and C++ print too."""
    caught: list[str] = []
    streams = (1, 2)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in streams]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        kept = [os.dup(number) for number in streams]
        for number, file in zip(streams, files, strict=True):
            os.dup2(file.fileno(), number)
        texts = [open(number, "w", encoding="utf-8", closefd=False) for number in streams]  # noqa: SIM115
        try:
            with (
                contextlib.redirect_stdout(texts[0]),
                contextlib.redirect_stderr(texts[1]),
                warnings.catch_warnings(),
            ):
                _show_warnings()
                yield caught
        finally:
            for number, text, copy in zip(streams, texts, kept, strict=True):
                text.flush()
                os.dup2(copy, number)
                os.close(copy)
        for file in files:
            file.seek(0)
            caught.append(file.read().decode("utf-8", "surrogateescape"))


def _show_warnings() -> None:
    """Print the warnings that a user would see; pytest would collect them otherwise."""

    def show(message: object, category: type, *_: object) -> None:
        print(f"{category.__name__}: {message}", file=sys.stderr)

    warnings.simplefilter("always")
    for silent in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", silent)
    warnings.showwarning = show  # type: ignore[assignment]


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Stop a command that takes too long, and limit its memory."""

    def stop(*_: object) -> None:
        raise OvertimeError

    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + MEMORY
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 40  # not Linux: limits endless allocation only
