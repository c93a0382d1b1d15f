"""A command that is killed at any moment leaves a complete output or none, and can be run again.

So does one that gets SIGTERM, SIGINT or SIGHUP, which leaves nothing unfinished but what it can be
resumed from. ``HYBRIDIZE_FUZZ_KILLS`` is how often each command is killed, and how often stopped.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damage_files import copy
from specimens import DISTILL, STUDENT, TEACHER

KILLS = int(os.environ.get("HYBRIDIZE_FUZZ_KILLS", "4"))
STOPS = int(os.environ.get("HYBRIDIZE_FUZZ_KILLS", "2"))
POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SERVER = Path(__file__).with_name("fork_server.py")
CALIBRATED = "--calibration in/text.jsonl --calibration-tokens 512"

LINES = {
    "convert": f"convert in/teacher -o out/done --keep 1 --max-shard-size 20KB {CALIBRATED}",
    "distill": DISTILL,
    "prune": "prune in/student -o out/done --params 80% --axes depth,ffn --candidates 1 "
    f"--device cpu --scores out/scores.safetensors {CALIBRATED}",
    "quantize": f"quantize in/student -o out/done --scheme fp8-tensor --keep-bf16 0 {CALIBRATED}",
}
REPLACING = ("convert", "distill")
VOLATILE = ("created", "seconds", "tokens_per_second")
Tree = dict[str, bytes]

pytestmark = pytest.mark.timeout(7200)


class Server:
    """Runs command lines; see `fork_server`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._receive() == "ready"

    def run(
        self,
        line: str,
        directory: Path,
        moment: tuple[str, int] | None = None,
        signum: int = signal.SIGKILL,
    ) -> dict[str, Any]:
        request = {
            "arguments": line.split(),
            "directory": str(directory),
            "moment": moment,
            "signal": signum,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = self._receive()
        return answer

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Server(process)
        process.kill()


def contents(directory: Path) -> Tree:
    """Return every file below a directory, without times and speeds in provenance records."""
    return {
        str(path.relative_to(directory)): (
            json.dumps(_without_volatile(json.loads(path.read_bytes()))).encode()
            if path.name == "hybridize.json"
            else path.read_bytes()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return [_without_volatile(item) for item in value] if isinstance(value, list) else value


class Workspace:
    """A directory in which a command is run, killed, and run again."""

    def __init__(self, directory: Path, specimens: Path) -> None:
        self.directory, self.out = directory, directory / "out"
        for source, name in (
            (TEACHER, "teacher"), (STUDENT, "student"), ("texts/text.jsonl", "text.jsonl"),
        ):  # fmt: skip
            copy(specimens / source, directory / "in" / name)
        self.out.mkdir()

    def inputs(self) -> Tree:
        return contents(self.directory / "in")

    def result(self) -> Tree | None:
        return contents(self.out / "done") if (self.out / "done").exists() else None


def moments(counts: dict[str, int], seed: str, count: int = KILLS) -> list[tuple[str, int]]:
    """Choose when to kill: half at calls, half just before changes to the disk, evenly spread."""
    rng, chosen = Random(seed), []
    for number in range(count):
        kind = ("calls", "disk")[number % 2]
        share = (number // 2 + rng.random()) / ((count + 1 - number % 2) // 2)
        chosen.append((kind, 1 + int(share * counts[kind])))
    return chosen


@pytest.mark.parametrize(
    ("command", "force"), [*product(LINES, [False]), *product(REPLACING, [True])]
)
def test_a_killed_command_can_be_run_again(server, specimens, tmp_path, command, force):
    line = LINES[command] + (" --force" if force else "")
    first = Workspace(tmp_path / "first", specimens)
    done = server.run(line, first.directory, ("calls", 0))
    assert done["code"] == 0, done["err"]
    want, inputs = first.result(), first.inputs()
    assert want is not None
    stop_politely(server, line, tmp_path, specimens, done, want)
    for number, moment in enumerate(moments(done, f"{command}{force}")):
        work = Workspace(tmp_path / str(number), specimens)
        if force:
            copy(specimens / STUDENT, work.out / "done")
        old = work.result()
        killed = server.run(line, work.directory, moment)
        where = f"killed at {moment} of {done['calls']} calls, {done['disk']} changes"
        assert killed["code"] in (0, -9), (where, killed["err"])
        assert work.inputs() == inputs, where
        found = work.result()
        aside = [contents(path) for path in work.out.glob("done.replaced-*")]
        assert found in (want, old) or (found is None and aside == [old]), where
        if found == want and not force:
            refused = server.run(line, work.directory)
            assert refused["code"] == 2, (where, refused["err"])
            assert "exists already" in refused["err"]
            continue
        again = run_again(server, line, work.directory, where)
        assert work.result() == want, where
        assert work.inputs() == inputs, where
        left = {path.name for path in work.out.iterdir()} - {"done", "scores.safetensors"}
        assert all(name in again["err"] for name in left), (where, left)


def stop_politely(
    server: Server,
    line: str,
    tmp_path: Path,
    specimens: Path,
    counts: dict[str, int],
    want: Tree,
) -> None:
    """Send a command SIGTERM, SIGINT or SIGHUP: it leaves only what it can be resumed from."""
    for number, moment in enumerate(moments(counts, line, STOPS)):
        work = Workspace(tmp_path / f"stopped-{number}", specimens)
        if "--force" in line:
            copy(specimens / STUDENT, work.out / "done")
        inputs, old = work.inputs(), work.result()
        signum = POLITE[(number + len(line)) % len(POLITE)]
        stopped = server.run(line, work.directory, moment, signum)
        where = f"{signum!r} at {moment} of {counts}: {stopped['err']}"
        assert stopped["code"] in (0, 128 + signum), where
        if stopped["code"]:
            last = stopped["err"].splitlines()[-1]
            assert last.startswith(f"stopped by {signum.name}; "), where
        assert work.inputs() == inputs, where
        assert work.result() in (want, old), where
        left = {path.name for path in work.out.iterdir()} - {"done", "scores.safetensors"}
        assert left <= {"done.distill", "done.prune"}, (where, left)
        assert not list(work.out.rglob("*partial*")), (where, list(work.out.rglob("*partial*")))
        if work.result() != want:
            assert bool(left) == ("--resume" in last), where
            run_again(server, f"{line} --resume" if left else line, work.directory, where)
            assert work.result() == want, where
            assert {path.name for path in work.out.iterdir()} <= {"done", "scores.safetensors"}


def run_again(server: Server, line: str, directory: Path, where: str) -> dict[str, Any]:
    """Run a command once more, with ``--resume`` if its error says so."""
    again = server.run(line, directory)
    if "--resume continues it" in again["err"]:
        again = server.run(f"{line} --resume", directory)
    assert again["code"] == 0, (where, again["err"])
    return again
