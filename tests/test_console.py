import json
import re
import sys

import pytest

from hybridize.console import Console


@pytest.fixture
def console():
    return Console()


def test_messages_and_errors_go_to_stderr(console, capsys):
    console.message("half way")
    console.error("no such\n  file")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "half way\nerror: no such file\n"


def test_silence_stops_messages_but_not_errors(console, capsys):
    with console.silence():
        console.message("half way")
        console.error("wrong")
    console.message("loud again")
    assert capsys.readouterr().err == "error: wrong\nloud again\n"


def test_json_mode_keeps_stdout_for_the_object(console, capsys):
    with console.only_json():
        print("a library's chatter")
        console.table(["a"], [[1]])
        console.json({"größe": 1.5})
    print("afterwards")
    out, err = capsys.readouterr()
    written, _, afterwards = out.rpartition("}\n")
    assert json.loads(written + "}") == {"größe": 1.5}
    assert "größe" in written
    assert afterwards == "afterwards\n"
    assert err == "a library's chatter\n"
    assert not console.json_mode


def test_json_refuses_what_json_cannot_hold(console):
    with pytest.raises(ValueError, match="JSON compliant"):
        console.json({"loss": float("nan")})


def test_a_failure_leaves_json_mode(console, capsys):
    stdout = sys.stdout
    with pytest.raises(KeyError), console.only_json():
        raise KeyError
    assert sys.stdout is stdout
    assert not console.json_mode


def test_table_aligns_numbers_right_and_text_left(console, capsys):
    console.table(["kind", "params"], [["attention", "12"], ["mlp", "3,456"]], title="Blocks")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Blocks"
    assert "attention       12" in lines
    assert "mlp          3,456" in lines


def test_table_prints_markup_as_it_is_and_wide_cells_whole(console, capsys):
    cell = "[bold]" + "x" * 300
    console.table(["name"], [[cell]])
    assert cell in capsys.readouterr().out


def test_progress_draws_nothing_where_stderr_is_no_terminal(console, capsys):
    with console.progress("copying", 10, "bytes") as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


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
    assert re.search(r"\d [kMGT]?B/s" if unit == "bytes" else r"\d tokens/s", err)


def test_progress_is_silent_on_a_terminal_when_quiet(console, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.silence(), console.progress("working", 2, "tokens") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
