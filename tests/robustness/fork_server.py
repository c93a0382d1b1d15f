"""Runs command lines in forks of one process, and kills some of them.

The server has already imported everything, so a fork takes milliseconds. A new process would take
seconds to import torch. The server has one thread only, because forking is not safe otherwise. It
reads one request per line from stdin and answers with one line on stdout. Both are JSON.

A request has ``arguments``, ``directory``, ``moment`` and ``signal``. The moment says when the fork
sends itself the signal: null for never, ``["calls", n]`` for the n-th call of a function in its
main thread, and ``["disk", n]`` for just before the n-th change to the disk. Moments are counted,
not timed, so that they are the same on every machine.

The answer has ``code`` (a negative one is the signal) and ``err``. If the process reached its end,
the answer also has the number of ``calls`` and ``disk`` changes. Calls are counted only if the
moment is a call; ``["calls", 0]`` counts them and never kills.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "shutil.copyfile", "shutil.rmtree",
}  # fmt: skip
_IMPORTED = (
    "hybridize.conversion.convert", "hybridize.conversion.calibration",
    "hybridize.conversion.selection",
    "hybridize.compress.distill.distill", "hybridize.compress.prune.prune",
    "hybridize.compress.quantize.quantize", "hybridize.cli.convert", "hybridize.cli.distill",
    "hybridize.cli.prune", "hybridize.cli.quantize", "hybridize.checkpoints.load",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "rich.table", "torch._dynamo",
)  # fmt: skip


def serve() -> None:
    """Answer requests until there are no more."""
    from importlib import import_module

    for name in _IMPORTED:
        import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"{threads} threads: it is not safe to fork")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        err, counts = Path(folder, "err"), Path(folder, "counts")
        child = os.fork()
        if child == 0:
            _run(request, err, counts)
        status = os.waitpid(child, 0)[1]
        found = json.loads(counts.read_text()) if counts.exists() else {}
        return {
            "code": os.waitstatus_to_exitcode(status),
            "err": err.read_text("utf-8", "replace"),
            **found,
        }


def _run(request: dict[str, Any], err: Path, counts: Path) -> None:
    """Run the request in the child process. This never returns."""
    code = 1
    try:
        os.chdir(request["directory"])
        for number, path in ((0, "/dev/null"), (1, "/dev/null"), (2, str(err))):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        counter = _Counter(*(request["moment"] or (None, 0)), request["signal"])
        from hybridize.__main__ import main

        with counter:
            code = main(request["arguments"])
        counts.write_text(json.dumps(counter.counts))
        sys.stderr.flush()
    finally:
        os._exit(code)


class _Counter:
    """Counts calls and changes to the disk, and sends the process its signal at its moment."""

    def __init__(self, kind: str | None, moment: int, signum: int) -> None:
        self.counts = {"calls": 0, "disk": 0}
        self._kind, self._moment, self._signum = kind, moment, signum
        self._on = False

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self._kind and self.counts[kind] == self._moment:
            os.kill(os.getpid(), self._signum)

    def _profile(self, _frame: object, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            self._count("calls")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if self._on and (writes or event in _CHANGES):
            self._count("disk")

    def __enter__(self) -> None:
        sys.addaudithook(self._audit)
        self._on = True
        if self._kind == "calls":
            sys.setprofile(self._profile)  # slow, so only if needed

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._on = False


if __name__ == "__main__":
    serve()
