"""Commands succeed with closed standard streams, and with terminals that lack characters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import write_stock

CONVERT = ("convert", "model", "-o", "out", "--attention", "1")
INSPECT = ("inspect", "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stock(tmp_path / "model", "llama")
    return tmp_path


def run(folder: Path, *words: str, closed: str = "", **environment: str):
    command = [sys.executable, "-m", "hybridize", *words]
    if closed:  # a shell closes the streams, because subprocess cannot
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, check=False
    )


@pytest.mark.skipif(os.name != "posix", reason="needs sh")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_changes_nothing(folder, closed):
    done = run(folder, *CONVERT, closed=closed)
    assert done.returncode == 0, done.stderr
    assert b"Error" not in done.stderr
    assert run(folder, "verify", "out").returncode == 0
    wrong = run(folder, "inspect", "gone", closed=closed)
    assert wrong.returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("words", [INSPECT, (*CONVERT, "--dry-run"), CONVERT])
def test_a_terminal_without_unicode_gets_plain_characters(folder, encoding, words):
    done = run(folder, *words, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "?" not in text


def test_json_is_escaped_where_the_encoding_lacks_characters(tmp_path):
    name = "modèle ×"
    write_stock(tmp_path / name, "llama")
    done = run(tmp_path, "inspect", name, "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    assert name in json.dumps(json.loads(done.stdout.decode("ascii")), ensure_ascii=False)


def test_the_help_of_every_command_can_be_printed(tmp_path):
    for command in ("convert", "distill", "prune", "quantize", "bench", "eval"):
        done = run(tmp_path, command, "--help", PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
