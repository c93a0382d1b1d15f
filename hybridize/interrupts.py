"""Signals that stop a command: the command cleans up, saves its state, and says what to do next.

`stop_on_signals` is for the command line only. Without it, as in a Python program, everything here
does nothing, and Ctrl-C raises KeyboardInterrupt as usual.

A signal raises `Stopped` in the main thread, wherever that is. `uninterrupted` delays it while a
file is renamed, or while a state is changed. The first signal starts the clean-up, and the second
one ends the process at once. The handlers are installed explicitly because the first process of a
container ignores signals otherwise. Signals that the parent process ignores, as under nohup, stay
ignored.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_REPEATED = 0.3
"""Seconds in which a signal counts once: `timeout` sends it to the process and to its group."""


class Stopped(BaseException):
    """A signal has arrived. Like KeyboardInterrupt, it is no Exception, so nothing handles it.

    Its notes (`BaseException.add_note`) say what is left and what to do next.

    Attributes:
        signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


INTERRUPTIONS = (Stopped, KeyboardInterrupt)
"""What a signal raises: on the command line, and in a Python program."""


class _State:
    """What has arrived, and whether it may be raised now."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.raised = False
        self.depth = 0  # of `uninterrupted` blocks
        self.tails = 0  # of `tail` blocks
        self.done = ""  # what the last block has completed


_state = _State()


def _raise_if_stopped() -> None:
    if _state.signum is None or _state.raised or _state.depth:
        return
    _state.raised = True
    stopped = Stopped(_state.signum)
    if _state.done:
        stopped.add_note(_state.done)
    raise stopped


def check_stopped() -> None:
    """Raise `Stopped` again if a signal has arrived and a library has swallowed the exception."""
    if _state.signum is not None and not _state.depth:
        raise Stopped(_state.signum)


def delayed_signal() -> int:
    """Return the number of the signal that `uninterrupted` delays; 0 if none has arrived."""
    return 0 if _state.signum is None or _state.raised else _state.signum


def stop(signum: int) -> NoReturn:
    """Raise `Stopped`, because this signal has arrived in another process of the run."""
    _state.signum, _state.raised = signum, True
    raise Stopped(signum)


@contextmanager
def uninterrupted(done: str = "") -> Iterator[None]:
    """Delay `Stopped` until the end of the block, which must be short.

    Args:
        done: what is complete after the block, for the message of a signal that arrived in it. If
            it is given within a `tail` block, the signal waits for the end of that block.
    """
    _state.depth += 1
    try:
        yield
    except BaseException:
        _state.depth -= 1
        raise
    _state.done = done
    if done and _state.tails:
        return  # `tail` ends the delay
    _state.depth -= 1
    _raise_if_stopped()
    _state.done = ""


@contextmanager
def tail() -> Iterator[None]:
    """Run the block to its end once an `uninterrupted` block in it has completed an output.

    For the last steps of a run: writing the output, and deleting the working directory.
    """
    before, _state.tails = _state.depth, _state.tails + 1
    try:
        yield
    finally:
        _state.tails -= 1
        _state.depth = before
    _raise_if_stopped()
    _state.done = ""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the block when a signal arrives. Only the main thread can do that."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State()
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {
        number: handler
        for number in numbers
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    with _end_at_second(set(before)):
        for number in before:
            signal.signal(number, _handle)
        try:
            yield
        finally:
            _restore(before)
            _state = _State()


def _handle(signum: int, _frame: Any) -> None:
    if _state.signum is None:
        _state.signum = signum
        _raise_if_stopped()


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def _end_at_second(numbers: set[int]) -> Iterator[None]:
    """End the process at the second signal, even if the main thread computes or waits.

    Python runs signal handlers between two instructions of the main thread only. It writes the
    number of each signal to a pipe at once, and a thread reads the pipe.
    """
    receive, send = os.pipe()
    for end in (receive, send):
        os.set_blocking(end, end == receive)
    try:
        before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
        watcher = threading.Thread(target=_watch, args=(receive, numbers), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(send, b"\0")
            watcher.join()
    finally:
        os.close(receive)
        os.close(send)


def _watch(receive: int, numbers: set[int]) -> None:
    first: tuple[int, float] | None = None
    while (number := os.read(receive, 1)[0]) != 0:
        if number not in numbers:
            continue
        now = time.monotonic()
        if first is None:
            first = (number, now)
        # A closed terminal sends SIGHUP twice: the kernel sends one, and the shell another one.
        elif number != first[0] or (now - first[1] > _REPEATED and number != _SIGHUP):
            os._exit(128 + number)


_SIGHUP = getattr(signal, "SIGHUP", None)


def _forget_in_child() -> None:
    """Let signals end a forked process, instead of writing to the pipe of its parent."""
    global _state
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _handle:
            with suppress(ValueError):  # forked by another thread than the main one
                signal.signal(number, signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
