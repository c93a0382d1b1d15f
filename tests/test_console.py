"""What goes to stdout and what to stderr."""

import json
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
        with console.silence():
            pass
        console.message("half way")
        console.error("wrong")
    console.message("loud again")
    assert capsys.readouterr().err == "error: wrong\nloud again\n"


def test_json_mode_keeps_stdout_for_the_object(console, capsys):
    with console.only_json():
        print("output of a library")
        console.table(["a"], [[1]])
        console.json({"größe": 1.5})
    print("afterwards")
    out, err = capsys.readouterr()
    written, _, afterwards = out.rpartition("}\n")
    assert json.loads(written + "}") == {"größe": 1.5}
    assert "größe" in written
    assert afterwards == "afterwards\n"
    assert err == "output of a library\n"
    assert not console.json_mode


def test_json_rejects_nan(console):
    with pytest.raises(ValueError, match="JSON compliant"):
        console.json({"loss": float("nan")})


def test_a_failure_ends_json_mode(console, capsys):
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


def test_table_does_not_interpret_markup_or_wrap_wide_cells(console, capsys):
    cell = "[bold]" + "x" * 300
    console.table(["name"], [[cell]])
    assert cell in capsys.readouterr().out
