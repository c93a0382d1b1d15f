"""What `real_models.py` has to do: the list of jobs, what is left of each, and for how long."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

from real_models_arms import ARMS
from real_models_store import ORIGINAL, Row, find

from hybridize.option_types import Count

SPEED = "speed"
"""The arm of the jobs that measure the speed, which does not depend on the training."""

PARTS = ("train", "quality", "mmlu", "speed")
"""The kinds of work, for ``--parts``."""


@dataclass(frozen=True)
class Job:
    """One row of the table: a checkpoint to make and to measure.

    Attributes:
        arm: a name in `ARMS`, ``original`` or ``speed``.
        share: the share of attention that is kept, such as ``25%``.
        tokens: training tokens.
    """

    arm: str
    share: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.arm}:{self.share}:{show_count(self.tokens)}"

    @property
    def identity(self) -> Row:
        """The fields that identify the row of the results."""
        if self.arm == ORIGINAL["arm"]:
            return ORIGINAL
        recipe = ARMS["hybridize" if self.arm == SPEED else self.arm].recipe()
        return {"arm": self.arm, "share": self.share, "tokens": self.tokens, "recipe": recipe}

    def left(self, content: dict[str, Any], parts: Sequence[str]) -> tuple[str, ...]:
        """Return which of ``parts`` are not in the results yet.

        Args:
            content: the results, see `Store`.
            parts: of `PARTS`.
        """
        row = find(content["rows"], self.identity) or {}
        if self.arm == SPEED:
            needed: tuple[str, ...] = ("speed",)
        elif self.tokens == 0:
            needed = ("quality", "mmlu")
        else:
            needed = ("train", "quality", "mmlu")
        return tuple(part for part in needed if part in parts and part not in row)


def all_jobs(shares: Sequence[str], milestones: Sequence[int]) -> list[Job]:
    """Return all jobs, those with few tokens first, so that every curve begins early."""
    jobs = {
        Job(name, share, tokens * factor)
        for name, arm in ARMS.items()
        for share in shares
        for tokens in milestones
        for factor in arm.token_factors
    }
    names = list(ARMS)
    ordered = sorted(jobs, key=lambda j: (j.tokens, shares.index(j.share), names.index(j.arm)))
    speeds = [Job(SPEED, share, 0) for share in shares]
    untrained = sum(job.tokens == 0 for job in ordered)
    return [original_job(), *ordered[:untrained], *speeds, *ordered[untrained:]]


def original_job() -> Job:
    """Return the job that measures the original, to which everything is compared."""
    return Job(ORIGINAL["arm"], ORIGINAL["share"], ORIGINAL["tokens"])


def select(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """Return the jobs that one of the patterns describes, and the original.

    Args:
        jobs: all jobs.
        patterns: ``ARM:SHARE:TOKENS`` with wildcards; missing parts are ``*``. No pattern: all.

    Raises:
        SystemExit: a pattern describes no job.
    """
    if not patterns:
        return list(jobs)
    chosen = {original_job()}
    for pattern in patterns:
        found = [job for job in jobs if _matches(job, pattern)]
        if not found:
            raise SystemExit(f"--only {pattern}: no such run; --list shows all")
        chosen.update(found)
    return [job for job in jobs if job in chosen]


def _matches(job: Job, pattern: str) -> bool:
    arm, share, tokens = [*pattern.split(":"), "*", "*"][:3]
    if tokens.isdecimal():
        tokens = show_count(int(tokens))
    return (
        fnmatchcase(job.arm, arm)
        and fnmatchcase(job.share, share)
        and fnmatchcase(show_count(job.tokens), tokens)
    )


class Estimate:
    """Estimates how long jobs take, from what was measured so far.

    Args:
        content: the results, see `Store`.
        tokens_per_s: the assumed rate of the training while none was measured.
    """

    def __init__(self, content: dict[str, Any], tokens_per_s: float) -> None:
        self._rows: list[Row] = content["rows"]
        self._assumed = tokens_per_s

    def hours(self, job: Job, left: Sequence[str], trained: int = 0) -> float:
        """Return the hours that the parts of a job take; unknown ones count as 0.

        Args:
            job: the job.
            left: its parts that are not done.
            trained: tokens of an interrupted training.
        """
        seconds = 0.0
        if "train" in left:
            rates = list(self._rates(job.arm)) or list(self._rates("*"))
            seconds += (job.tokens - trained) / (fmean(rates) if rates else self._assumed)
        for part in ("quality", "mmlu", "speed"):
            known = [row[part]["total_seconds"] for row in self._rows if part in row]
            if part in left and known:
                seconds += fmean(known)
        return seconds / 3600

    def _rates(self, arm: str) -> Iterator[float]:
        for row in self._rows:
            # The time is missing where the machine was suspended during the run; a note says so.
            rate = row.get("train", {}).get("tokens_per_s")
            if rate and arm in ("*", row["arm"]):
                yield rate


def show_count(count: int) -> str:
    """Return a number of tokens as it is typed: ``30k``, ``1M``."""
    return Count().to_text(count) if count else "0"


def parse_counts(text: str) -> tuple[int, ...]:
    """Read numbers of tokens, separated by commas; 0 is allowed.

    Raises:
        ValueError: one is not a number.
    """
    return tuple(0 if part == "0" else Count().convert(part) for part in text.split(","))
