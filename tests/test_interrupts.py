"""Signals: delayed, raised, ignored, repeated, and reported in one line."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hybridize.interrupts import Stopped, check_stopped, stop_on_signals, tail, uninterrupted
from hybridize.progress import NoProgress
from tiny import write_stock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _no_ignored_signals():
    """Signals that are ignored stay ignored, and `nohup` and some CI runners ignore them."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each, handler in before.items():
        if handler == signal.SIG_IGN:
            usual = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            signal.signal(each, usual)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_raised_and_the_handlers_are_restored(signum):
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_on_signals(), pytest.raises(Stopped, match=f"stopped by {signum.name}") as caught:
        signal.raise_signal(signum)
    assert caught.value.signum == signum
    assert [signal.getsignal(each) for each in SIGNALS] == before
    check_stopped()  # the next command starts from the beginning


def test_a_signal_waits_for_the_end_of_a_block():
    done = []
    with stop_on_signals(), pytest.raises(Stopped) as caught:  # noqa: PT012
        with uninterrupted("out is complete"):
            with uninterrupted():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]
    assert caught.value.__notes__ == ["out is complete"]


def test_a_run_that_has_written_its_output_completes():
    done = []
    with stop_on_signals(), pytest.raises(Stopped) as caught, tail():  # noqa: PT012
        with uninterrupted():
            done.append("an earlier file")
        with uninterrupted("out is complete"):
            signal.raise_signal(signal.SIGTERM)
        done.append("clean-up")
    assert done == ["an earlier file", "clean-up"]
    assert caught.value.__notes__ == ["out is complete"]


def test_a_signal_before_the_output_is_written_is_raised_at_once():
    with stop_on_signals(), pytest.raises(Stopped), tail():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("not raised")


def test_an_exception_that_a_library_has_swallowed_is_raised_again():
    with stop_on_signals():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            NoProgress().advance()


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_ends_by_itself():
    with stop_on_signals():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


SLOW_CLEAN_UP = """
import sys, time
from hybridize.interrupts import Stopped, stop_on_signals
with stop_on_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Stopped:
        print("cleaning", flush=True)
        time.sleep(float(sys.argv[1]))
        print("cleaned", flush=True)
"""


@pytest.mark.parametrize(
    ("first", "second", "pause", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 0.5, 143),
        (signal.SIGTERM, signal.SIGINT, 0, 130),
        (signal.SIGTERM, signal.SIGTERM, 0, 0),  # the same one: timeout sends it twice
        (signal.SIGHUP, signal.SIGHUP, 0.5, 0),  # the kernel and the shell send one each
    ],
)
def test_a_second_signal_ends_the_process_at_once(first, second, pause, code):
    """Even while the main thread waits in a call of the system."""
    seconds = "60" if code else "1"
    command = [sys.executable, "-c", SLOW_CLEAN_UP, seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning\n"
        time.sleep(pause)
        process.send_signal(second)
        assert process.wait(30) == code
        assert process.stdout.read() == ("" if code else "cleaned\n")


def hybridize(*words, **options):
    command = [*options.pop("before", ()), sys.executable, "-m", "hybridize", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("before", [(), ("unshare", "--pid", "--fork", "--kill-child")])
def test_a_command_says_in_one_line_that_it_was_stopped(tmp_path, before):
    """Also as the first process of a container, for which the system ignores signals."""
    os.mkfifo(tmp_path / "text.txt")  # the command waits here
    write_stock(tmp_path / "model", "llama")
    words = ["eval", tmp_path / "model", "--perplexity", tmp_path / "text.txt", "--tasks", "x"]
    try:
        with (
            hybridize(*words, before=before) as process,
            open(tmp_path / "text.txt", "w"),  # waits until the command opens it
        ):
            pid = process.pid
            if before:
                pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            os.kill(pid, signal.SIGTERM)
            err = process.stderr.read()
    except OSError:
        pytest.skip("needs the permission to unshare")
    assert err == "stopped by SIGTERM; no unfinished output is left; run it again\n"
    assert process.returncode == 143


@pytest.mark.parametrize("line", ["--help", "inspect model", "inspect model --json"])
def test_a_reader_that_ends_early_is_no_error(tmp_path, line):
    """As in ``hybridize … | head -1``."""
    write_stock(tmp_path / "model", "llama")
    reader, writer = os.pipe()
    os.close(reader)
    with hybridize(*line.split(), stdout=writer, cwd=tmp_path) as process:
        os.close(writer)
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_command_goes_on_without_a_terminal(tmp_path):
    """Its messages get lost, but not its result."""
    write_stock(tmp_path / "model", "llama")
    reader, writer = os.pipe()
    os.close(reader)
    words = ("convert", "model", "-o", "out", "--attention", "1")
    command = [sys.executable, "-m", "hybridize", *words]
    done = subprocess.run(command, cwd=tmp_path, stderr=writer, capture_output=False, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "out" / "config.json").exists()
