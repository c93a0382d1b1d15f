"""Every `hybridize` command in the documents: the command and its options exist as written."""

import re
import shlex
from pathlib import Path

import click
import pytest

from hybridize.cli import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def commands(text: str) -> list[list[str]]:
    """The words after ``hybridize`` of all commands in a document's code blocks."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language not in ("", "bash", "sh", "console"):
            continue
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["hybridize"]:
                found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Parse a command's options as click does before it runs; raises where that fails."""
    name, *rest = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    with command.make_context(name, rest):
        pass


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_parse(document):
    for words in commands(document.read_text("utf-8")):
        parse(words)


@pytest.mark.parametrize("line", ["convert a -o b --atention 2", "conver a", "bench a --repeats x"])
def test_a_mistake_is_found(line):
    with pytest.raises((click.ClickException, AssertionError)):
        parse(shlex.split(line))
    assert commands(f"```\nhybridize {line}  # so\n```\n") == [shlex.split(line)]
