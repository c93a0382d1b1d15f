"""Progress bars on a terminal, and lines of text elsewhere."""

import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from hybridize.console import Console
from hybridize.demo import CHECKPOINT
from hybridize.progress import ProgressLog


@pytest.fixture(autouse=True)
def _progress_lines(monkeypatch):
    """Print progress lines after two seconds, which other tests do not; see conftest.py."""
    monkeypatch.setattr(ProgressLog, "FIRST_LINE", 2.0)


@pytest.fixture
def console():
    return Console()


@pytest.mark.parametrize("json_mode", [False, True])
def test_a_short_step_prints_nothing_without_a_terminal(console, capsys, json_mode):
    mode = console.only_json() if json_mode else nullcontext()
    with mode, console.progress("copying", 10, "bytes") as progress:
        progress.advance(10)
    assert capsys.readouterr() == ("", "")


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


def test_a_long_step_prints_lines_once_a_minute_without_a_terminal(capsys):
    clock = Clock()
    log = ProgressLog("sampling text", 8000, "tokens", clock=clock)
    for seconds, tokens in [(1, 0), (2, 0), (3, 10), (61, 1990), (62, 0), (90, 1000), (122, 1000)]:
        clock.now = 100.0 + seconds
        log.advance(tokens)
    clock.now = 100.0 + 250
    log.advance(4000)
    log.print_end()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "sampling text: 0 of 8,000 tokens (0%)",
        "sampling text: 2,000 of 8,000 tokens (25%), 32.3 tokens/s, 3 min 6 s left",
        "sampling text: 4,000 of 8,000 tokens (50%), 32.8 tokens/s, 2 min 2 s left",
        "sampling text: 8,000 of 8,000 tokens (100%), 32.0 tokens/s, 0 s left",
        "sampling text: 8,000 tokens in 4 min 10 s, 32.0 tokens/s",
    ]


def test_slow_units_show_the_time_of_each_and_the_rate_excludes_resumed_work(capsys):
    clock = Clock()
    log = ProgressLog("measuring candidates", 5, "candidates", completed=2, clock=clock)
    clock.now += 150
    log.advance()
    log.print_end()
    assert capsys.readouterr().err.splitlines() == [
        "measuring candidates: 3 of 5 candidates (60%), 2 min 30 s each, 5 min 0 s left",
        "measuring candidates: 3 candidates in 2 min 30 s, 2 min 30 s each",
    ]


def test_a_step_of_unknown_length_has_no_time_left(capsys):
    clock = Clock()
    log = ProgressLog("tokenizing", None, "tokens", clock=clock)
    clock.now += 5
    log.advance(1000)
    assert capsys.readouterr().err == "tokenizing: 1,000 tokens in 5 s, 200 tokens/s\n"


def test_lines_appear_even_while_no_unit_is_completed(console, capsys, monkeypatch):
    monkeypatch.setattr(ProgressLog, "FIRST_LINE", 0.01)
    monkeypatch.setattr(ProgressLog, "INTERVAL", 0.05)
    with console.only_json(), console.progress("hashing", 3 * 2**20, "bytes") as progress:
        seen = ""
        while seen.count("\n") < 3:
            time.sleep(0.01)
            seen += capsys.readouterr().err
        progress.advance(2**20)
    out, err = capsys.readouterr()
    assert out == ""
    assert seen.splitlines()[:3] == ["hashing: 0 bytes of 3.0 MiB (0%)"] * 3
    assert "hashing: 1.0 MiB in " in err.splitlines()[-1]


def test_a_step_that_fails_prints_no_last_line(console, capsys, monkeypatch):
    monkeypatch.setattr(ProgressLog, "INTERVAL", 0.0)
    with pytest.raises(KeyError), console.progress("hashing", 3, "bytes"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_command_prints_progress_to_a_log_file(tmp_path):
    """The real entry point, with short intervals, its stderr in a file."""
    code = (
        "import sys; from hybridize.progress import ProgressLog;"
        "ProgressLog.FIRST_LINE = ProgressLog.INTERVAL = 0.0;"
        "from hybridize.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    results = {}
    for flags in ((), ("--json",), ("--quiet",)):
        log = tmp_path / "log"
        with log.open("w") as file:
            command = [sys.executable, "-c", code, "verify", str(CHECKPOINT), *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert done.returncode == 0
        results[flags] = done.stdout, log.read_text()
    size = "2.5 MiB"
    for flags in ((), ("--json",)):
        lines = results[flags][1].splitlines()
        assert re.match(rf"verifying: .* of {size} \(\d+%\)", lines[0])
        assert any(re.match(rf"verifying: {size} in \d+ s, .*iB/s$", line) for line in lines)
    assert json.loads(results["--json",][0])["problems"] == []
    assert "verifying" not in results["--quiet",][1]


@pytest.mark.parametrize("unit", ["bytes", "tokens"])
def test_progress_shows_rate_on_a_terminal(console, capsys, monkeypatch, unit):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("working", 1_000_000, unit) as bar:
        for _ in range(4):
            bar.advance(250_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "working" in err
    assert "100%" in err
    assert re.search(r"\d [kMGT]?B/s" if unit == "bytes" else r"\d[MGT]? tokens/s", err)


def test_progress_is_silent_on_a_terminal_when_quiet(console, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.silence(), console.progress("working", 2, "tokens") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
