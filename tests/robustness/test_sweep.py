"""Thousands of damaged inputs, through the real command line: it succeeds, or says why in a line.

A case that fails names its number; ``HYBRIDIZE_FUZZ_CASE=number`` runs it alone, and
``HYBRIDIZE_FUZZ_CASES`` says how many there are.
"""

import os
from pathlib import Path

import pytest
from cases import COMMANDS, Case, lay_out, make_case
from sandbox import OvertimeError, run
from specimens import TEACHER

CASES = int(os.environ.get("HYBRIDIZE_FUZZ_CASES", "2000"))
ONE = os.environ.get("HYBRIDIZE_FUZZ_CASE")
PARTS = 20
_SHOWN = 20


def contents(directory: Path) -> dict[str, bytes | str | None]:
    """Everything below a directory: files with their bytes, links with their targets."""
    return {
        str(path.relative_to(directory)): (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(directory.rglob("*"))
    }


def complaint(case: Case) -> str | None:
    """Run a case; return what is wrong with how it ended."""
    before = contents(case.directory / "in")
    before.pop("scores.safetensors", None)  # written where they are missing
    try:
        done = run(case.words, case.directory)
    except OvertimeError:
        return "took too long"
    left = {path.name for path in (case.directory / "out").iterdir()}
    after = contents(case.directory / "in")
    after.pop("scores.safetensors", None)
    if after != before:
        return "an input was changed"
    if done.code == 0:
        if left != set(case.command.written):
            return f"succeeded and left {sorted(left)}"
        if "done" in left and (found := run(["verify", "out/done"], case.directory)).code:
            return f"wrote what is not sound: {found.err}"
        return "Traceback:\n" + done.err if "Traceback" in done.err else None
    if done.code not in (1, 2):
        return f"exit code {done.code}: {done.err}"
    if left - set(case.command.left):
        return f"failed and left {sorted(left)}: {done.err}"
    return bad_message(case, done.err)


def bad_message(case: Case, err: str) -> str | None:
    """Return what is wrong with the text of a failure."""
    lines = err.removesuffix("\n").split("\n")
    listed = case.words[0] == "verify"  # names every problem, and then says how many
    if (len(lines) != 1 and not listed) or not all(x.startswith("error: ") for x in lines):
        return f"not one line: {err[:3000]}"
    if "--debug" in err:
        return f"met nobody's check: {err[:3000]}"
    if any(not line.isprintable() for line in lines):
        return f"not printable: {err!r}"
    return f"too long: {err[:300]}…" if max(map(len, lines)) > 1000 else None


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


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_inputs(specimens, tmp_path, part):
    numbers = range(part, CASES, PARTS) if ONE is None else [int(ONE)][: part == 0]
    check(numbers, specimens, tmp_path, None)


@pytest.mark.timeout(3600)
def test_a_damaged_real_checkpoint(specimens, tmp_path, materials):
    check(range(CASES // 40), specimens, tmp_path, materials / "stories260K")
