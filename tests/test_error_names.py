"""Below the command line, messages name options by their keyword in backticks, never by a flag."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import click
import pytest

import hybridize
from hybridize.cli import COMMANDS, cli
from hybridize.options import Config
from test_imports import FOLDERS, modules

FACE = ("hybridize.cli", "hybridize.demo", "hybridize.__main__", "hybridize.options")
"""Modules that may name flags."""

CSS = "hybridize.evals.report.style"
"""Variables of CSS look like flags."""

ALLOWED = {"--always", "--short", "--predict"}
"""Two flags of git, and ``bench --predict``, which is a name in files of results."""

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_KEYWORD = re.compile(r"`([a-z][a-z0-9_]*)(?:\[\w+\])?(?:=[^`]*)?`")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every string in the source except docstrings, with its line.

    In an f-string, each value is replaced by ``…``.
    """
    tree = ast.parse(source)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value in node.values
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in statements | parts:
                yield node.lineno, text
            case ast.JoinedStr(values=values):
                yield (
                    node.lineno,
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in values
                    ),
                )


def flags_in(source: str) -> list[str]:
    """The flags in a source's strings, each with its line."""
    return [
        f"line {line}: {flag}"
        for line, text in texts(source)
        for flag in _FLAG.findall(text)
        if flag not in ALLOWED
    ]


@cache
def keywords() -> frozenset[str]:
    """Every field of a config class, and every parameter of a command or a public function."""
    names: set[str] = set()
    for name, _ in modules():
        if name.split(".")[-1] == "config":
            import_module(name)
    for config in _subclasses(Config):
        if config.__module__.startswith("hybridize."):
            names.update(each.name for each in fields(config))
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        names.update(parameter.name for parameter in command.params)
    for name in set(hybridize.__all__) - {"__version__"}:
        thing = getattr(hybridize, name)
        if inspect.isfunction(thing) or is_dataclass(thing):
            names.update(inspect.signature(thing).parameters)
    return frozenset(names)


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def unknown_in(source: str) -> list[str]:
    """The names in backticks that are not keywords, in a source's strings, each with its line."""
    return [
        f"line {line}: {name}"
        for line, text in texts(source)
        for name in _KEYWORD.findall(text)
        if name not in keywords()
    ]


def below_the_face() -> list[tuple[str, Path]]:
    return [(name, path) for name, path in modules() if not name.startswith((*FACE, CSS))]


def test_no_string_below_the_command_line_contains_a_flag():
    every = below_the_face()
    assert {name.split(".")[1] for name, _ in every} >= set(FOLDERS.values())
    found = [
        f"{name}, {flag}" for name, path in every for flag in flags_in(path.read_text("utf-8"))
    ]
    assert found == []


def test_every_name_in_backticks_is_an_option():
    assert {"attention", "tasks", "force", "device"} <= keywords()
    found = [
        f"{name}, {unknown}"
        for name, path in below_the_face()
        for unknown in unknown_in(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'raise InputError("leave out --force")',
        'raise InputError(f"--keep {keep}: no such block")',
        'help = "see `keep` or " + "--pattern"',
        'x = {"--attention": attention}',
    ],
)
def test_a_flag_in_a_string_is_found(source):
    assert len(flags_in(f'"""A --docstring may."""\n{source}')) == 1


@pytest.mark.parametrize(
    "source",
    [
        'raise InputError("give `frobnicate`")',
        'raise InputError(f"`frobnicate={value}`: no")',
        'raise InputError(f"`frobnicate[{name}]={value}`: no")'.replace("{name}", "kl"),
    ],
)
def test_a_name_that_is_no_option_is_found(source):
    assert unknown_in(source) == ["line 1: frobnicate"]


def test_other_strings_pass():
    source = (
        '"""Docs of `x` and --y."""\ngit("--short")\nx = "a--b `attention=25%` `force` `ssm_…`"'
    )
    assert flags_in(source) == unknown_in(source) == []
