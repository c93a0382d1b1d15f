"""Run the cases of the sweep in order and count how they end. It continues where it was stopped.

The log is one JSON file. It is written after every block of cases, and the next run continues with
the first case that it does not contain. Faults stay in it, with their case number, until
``--again`` runs them again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from cases import make_case
from specimens import write_specimens
from transformers.utils.logging import disable_progress_bar
from verdict import judge

from hybridize.evals.commit import current_commit

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "benchmarks" / "results" / "fuzz.json"
BLOCK = 100
Result = tuple[int, str, str, str | None, str]
"""Case number, command, outcome, complaint, description."""


class Log:
    """The counts and faults of all cases so far, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data: dict[str, Any] = {
            "benchmark": "fuzz", "next_case": 0, "runs": [], "outcomes": {}, "faults": [],
        }  # fmt: skip
        if path.exists():
            self._data = json.loads(path.read_text())

    @property
    def next_case(self) -> int:
        return int(self._data["next_case"])

    @property
    def fault_numbers(self) -> list[int]:
        return [fault["case"] for fault in self._data["faults"]]

    def total(self) -> dict[str, int]:
        """Return the number of cases with each outcome."""
        total: Counter[str] = Counter()
        for counts in self._data["outcomes"].values():
            total.update(counts)
        return dict(total)

    def add(self, results: list[Result], seconds: float) -> None:
        """Add the results of the next cases, and write the file."""
        first, last = results[0][0], results[-1][0]
        runs, commit = self._data["runs"], current_commit()
        if runs and runs[-1]["commit"] == commit and runs[-1]["last"] == first - 1:
            runs[-1]["last"] = last
            runs[-1]["seconds"] = round(runs[-1]["seconds"] + seconds)
        else:
            runs.append({"first": first, "last": last, "commit": commit, "seconds": round(seconds)})
        for result in results:
            self._count(result)
        self._data["next_case"] = last + 1
        self._write()

    def replace(self, results: list[Result]) -> None:
        """Replace faults by the results of the same cases, and write the file."""
        numbers = {number for number, *_ in results}
        faults = self._data["faults"]
        self._data["faults"] = [fault for fault in faults if fault["case"] not in numbers]
        for _, command, *_ in results:
            self._data["outcomes"][command]["fault"] -= 1
        for result in results:
            self._count(result)
        self._write()

    def _count(self, result: Result) -> None:
        number, command, outcome, complaint, description = result
        counts = self._data["outcomes"].setdefault(command, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        if complaint is not None:
            fault = {"case": number, "description": description, "complaint": complaint}
            self._data["faults"].append(fault)

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._data, indent=2) + "\n")
        partial.replace(self._path)


def run_cases(numbers: list[int], specimens: Path) -> list[Result]:
    """Run cases in this process."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            case = make_case(number, specimens, Path(folder) / "case")
            verdict = judge(case)
            results.append(
                (number, case.words[0], verdict.outcome, verdict.complaint, case.description)
            )
    return results


def main() -> int:
    """Run the cases that the arguments ask for; return 1 if the log contains faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="stop after this case")
    parser.add_argument("--log", type=Path, default=LOG, help="file of the counts")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--again", action="store_true", help="run the faults of the log again")
    options = parser.parse_args()
    disable_progress_bar()
    log = Log(options.log)
    workers = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, workers:
        specimens = Path(folder)
        write_specimens(specimens)
        if options.again:
            log.replace(run_cases(log.fault_numbers, specimens))
        _continue(log, options, specimens, workers)
    print(f"{log.next_case} cases: {log.total()}; see {options.log}")
    return 1 if log.fault_numbers else 0


def _continue(
    log: Log, options: argparse.Namespace, specimens: Path, workers: ProcessPoolExecutor
) -> None:
    """Run the cases that the log does not contain, a block at a time."""
    blocks = [
        list(range(first, min(first + BLOCK, options.cases)))
        for first in range(log.next_case, 0 if options.again else options.cases, BLOCK)
    ]
    started = time.monotonic()
    for results in workers.map(run_cases, blocks, [specimens] * len(blocks)):
        log.add(results, time.monotonic() - started)
        started = time.monotonic()
        print(f"{log.next_case} of {options.cases} cases: {log.total()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
