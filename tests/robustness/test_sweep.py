"""Runs commands on thousands of damaged inputs. Each must succeed, or explain itself in one line.

A failure shows the case number. ``HYBRIDIZE_FUZZ_CASE=number`` runs this case alone;
``HYBRIDIZE_FUZZ_CASES`` is the number of cases.
"""

import os
from pathlib import Path

import pytest
from cases import COMMANDS, Case, copy_inputs, make_case
from specimens import TEACHER
from verdict import complaint

CASES = int(os.environ.get("HYBRIDIZE_FUZZ_CASES", "2000"))
ONE = os.environ.get("HYBRIDIZE_FUZZ_CASE")
PARTS = 20
_SHOWN = 20

pytestmark = pytest.mark.timeout(7200)


def check(numbers: range | list[int], specimens: Path, directory: Path, model: Path | None) -> None:
    complaints = []
    for number in numbers:
        case = make_case(number, specimens, directory / "case", model)
        found = complaint(case)
        if found is not None:
            complaints.append(f"case {number}: {case.description}\n    {found}")
    if complaints:
        shown = "\n".join(complaints[:_SHOWN])
        pytest.fail(f"{len(complaints)} of {len(numbers)} cases\n{shown}", pytrace=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_sound_inputs_succeed(specimens, tmp_path, name):
    """Otherwise the sweep could pass because the inputs are always refused."""
    command = COMMANDS[name]
    for words in ("", *command.extra):
        copy_inputs(command, specimens, tmp_path, specimens / TEACHER)
        case = Case(0, tmp_path, command, tuple(f"{command.line} --quiet {words}".split()), name)
        assert complaint(case) is None, words
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(command.written), words


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_inputs_succeed_or_are_refused_in_one_line(specimens, tmp_path, part):
    numbers = range(part, CASES, PARTS) if ONE is None else [int(ONE)][: part == 0]
    check(numbers, specimens, tmp_path, None)


def test_a_damaged_real_checkpoint_is_used_or_refused_in_one_line(specimens, tmp_path, materials):
    check(range(CASES // 40), specimens, tmp_path, materials / "stories260K")
