"""Odd values for every numeric option: the command succeeds or explains itself in one line."""

import click
import pytest
from cases import COMMANDS, Case, copy_inputs
from specimens import TEACHER
from verdict import complaint

from hybridize.cli import cli
from hybridize.cli.config_options import TypedText
from hybridize.option_types import (
    Count,
    Float,
    Integer,
    IntegerOr,
    Listed,
    OptionType,
    Repeated,
    Size,
)  # fmt: skip

ODD = ("0", "-1", "0.5", "nan", "inf", "1e400", "", "x", "1k", "9" * 20)
ENDLESS = {"--max-new-tokens", "--repeats", "--gen-len"}
"""Large values of these options are valid but take very long, so they are not tried."""
TRIED = (
    "inspect --states", "convert", "convert --dry-run", "generate", "distill --dry-run",
    "prune --dry-run", "quantize", "bench", "bench --predict", "eval --perplexity",
    "export --dry-run",
)  # fmt: skip

pytestmark = pytest.mark.timeout(1800)


NUMBERS = (Integer, IntegerOr, Float, Count, Size)


def is_numeric(type_: OptionType) -> bool:
    match type_:
        case Listed(item=item) | Repeated(item=item):
            return is_numeric(item)
    return isinstance(type_, NUMBERS)


def numeric_options(command: str) -> list[str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return [
        option.opts[-1]
        for option in found.params
        if isinstance(option.type, TypedText) and is_numeric(option.type.option_type)
    ]


@pytest.mark.parametrize("name", TRIED)
def test_odd_numbers_succeed_or_are_refused_in_one_line(specimens, tmp_path, name):
    command = COMMANDS[name]
    complaints = []
    copy_inputs(command, specimens, tmp_path, specimens / TEACHER)
    for option in numeric_options(command.line.split()[0]):
        for value in ODD[:-1] if option in ENDLESS else ODD:
            case = Case(
                0, tmp_path, command, (*command.line.split(), "--quiet", option, value), name
            )
            found = complaint(case)
            if any((tmp_path / "out").iterdir()):
                copy_inputs(command, specimens, tmp_path, specimens / TEACHER)
            if found is not None:
                complaints.append(f"{option} {value!r}: {found}")
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
