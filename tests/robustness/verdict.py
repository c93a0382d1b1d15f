"""Checks how a command ended."""

import os
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from sandbox import Finished, OvertimeError, run


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Attributes:
        outcome: ``succeeded``, ``refused`` (exit code 2), ``failed`` (exit code 1), or ``fault``.
        complaint: what went wrong; None unless the outcome is a fault.
    """

    outcome: str
    complaint: str | None = None


def complaint(case: Case) -> str | None:
    """Run a case; return a description of what went wrong, or None."""
    return judge(case).complaint


def judge(case: Case) -> Verdict:
    """Run a case and check how it ended."""
    before = _contents(case.directory / "in")
    try:
        done = run(case.words, case.directory)
    except OvertimeError:
        return Verdict("fault", "took too long")
    found = _complaint(case, done, before)
    if found is not None:
        return Verdict("fault", found)
    return Verdict({0: "succeeded", 1: "failed", 2: "refused"}[done.code])


def _complaint(case: Case, done: Finished, before: dict[str, bytes | str | None]) -> str | None:
    left = {path.name for path in (case.directory / "out").iterdir()}
    if _contents(case.directory / "in") != before:
        return "an input was changed"
    if done.code == 0:
        if left != set(case.command.written):
            return f"succeeded and wrote {sorted(left)}"
        accepted = "--allow-nonfinite" in case.words  # verify complains about what it accepts
        if (
            "done" in left
            and not accepted
            and (found := run(["verify", "out/done"], case.directory)).code
        ):
            return f"wrote a checkpoint that verify rejects: {found.err}"
        return "Traceback:\n" + done.err if "Traceback" in done.err else None
    if done.code not in (1, 2):
        return f"exit code {done.code}: {done.err}"
    if left - set(case.command.left):
        return f"failed and left {sorted(left)}: {done.err}"
    return _bad_message(case, done.err)


def _contents(directory: Path) -> dict[str, bytes | str | None]:
    """Return everything below a directory: the bytes of files, the targets of links."""
    found = {
        str(path.relative_to(directory)): (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(directory.rglob("*"))
    }
    found.pop("scores.safetensors", None)  # may be written by the command
    return found


def _bad_message(case: Case, err: str) -> str | None:
    """Return what is wrong with an error message, or None if nothing is."""
    lines = err.removesuffix("\n").split("\n")
    listed = case.words[0] == "verify"  # it prints one line per problem, then their number
    if (len(lines) != 1 and not listed) or not all(x.startswith("error: ") for x in lines):
        return f"not one line: {err[:3000]}"
    if "--debug" in err:
        return f"unexpected exception: {err[:3000]}"
    if any(not line.isprintable() for line in lines):
        return f"not printable: {err!r}"
    return f"too long: {err[:300]}…" if max(map(len, lines)) > 1000 else None
