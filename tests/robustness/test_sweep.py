"""Thousands of damaged inputs, through the real command line: it succeeds, or says why in a line.

A case that fails names its number; ``HYBRIDIZE_FUZZ_CASE=number`` runs it alone, and
``HYBRIDIZE_FUZZ_CASES`` says how many there are.
"""

import os
from pathlib import Path

import pytest
from cases import COMMANDS, Case, lay_out, make_case
from specimens import TEACHER
from verdict import complaint

CASES = int(os.environ.get("HYBRIDIZE_FUZZ_CASES", "2000"))
ONE = os.environ.get("HYBRIDIZE_FUZZ_CASE")
PARTS = 20
_SHOWN = 20

pytestmark = pytest.mark.timeout(7200)


def check(numbers: range | list[int], specimens: Path, place: Path, model: Path | None) -> None:
    complaints = []
    for number in numbers:
        case = make_case(number, specimens, place / "case", model)
        found = complaint(case)
        if found is not None:
            complaints.append(f"case {number}: {case.story}\n    {found}")
    if complaints:
        shown = "\n".join(complaints[:_SHOWN])
        pytest.fail(f"{len(complaints)} of {len(numbers)} cases\n{shown}", pytrace=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_sound_inputs_succeed(specimens, tmp_path, name):
    """Or the sweep would prove nothing."""
    command = COMMANDS[name]
    for words in ("", *command.extra):
        lay_out(command, specimens, tmp_path, specimens / TEACHER)
        case = Case(0, tmp_path, command, tuple(f"{command.line} --quiet {words}".split()), name)
        assert complaint(case) is None, words
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(command.written), words


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_inputs(specimens, tmp_path, part):
    numbers = range(part, CASES, PARTS) if ONE is None else [int(ONE)][: part == 0]
    check(numbers, specimens, tmp_path, None)


def test_a_damaged_real_checkpoint(specimens, tmp_path, materials):
    check(range(CASES // 40), specimens, tmp_path, materials / "stories260K")
