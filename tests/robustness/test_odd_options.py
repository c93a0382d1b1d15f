"""Every number that an option takes, replaced by what is none or none that makes sense."""

import click
import pytest
from cases import COMMANDS, Case, lay_out
from specimens import TEACHER
from verdict import complaint

from hybridize.cli import cli

ODD = ("0", "-1", "0.5", "nan", "inf", "1e400", "", "x", "1k", "9" * 20)
ENDLESS = {"--max-new-tokens", "--repeats", "--gen-len"}
"""A large number of these is honest work."""
TRIED = (
    "inspect --states", "convert", "convert --dry-run", "generate", "distill --dry-run",
    "prune --dry-run", "quantize", "bench", "bench --predict", "eval --perplexity",
    "export --dry-run",
)  # fmt: skip

pytestmark = pytest.mark.timeout(1800)


def numeric_options(command: str) -> list[str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    textual = (click.Choice, click.Path, click.types.StringParamType)
    return [
        option.opts[-1]
        for option in found.params
        if isinstance(option, click.Option)
        and not option.is_flag
        and (not isinstance(option.type, textual) or option.metavar in ("N", "N,…"))
    ]


@pytest.mark.parametrize("name", TRIED)
def test_odd_numbers(specimens, tmp_path, name):
    command = COMMANDS[name]
    complaints = []
    lay_out(command, specimens, tmp_path, specimens / TEACHER)
    for option in numeric_options(command.line.split()[0]):
        for value in ODD[:-1] if option in ENDLESS else ODD:
            case = Case(
                0, tmp_path, command, (*command.line.split(), "--quiet", option, value), name
            )
            found = complaint(case)
            if any((tmp_path / "out").iterdir()):
                lay_out(command, specimens, tmp_path, specimens / TEACHER)
            if found is not None:
                complaints.append(f"{option} {value!r}: {found}")
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
