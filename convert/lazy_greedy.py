"""Greedy selection that measures a candidate again only where this can change the choice.

Greedy selection adds the candidate that raises the loss least, again and again. The rise of a
candidate depends on those that were added before it, so the plain algorithm measures every
remaining candidate in each round: n(n + 1)/2 runs for n candidates. Two things save runs:

- The rises mostly grow as more candidates are added. So an earlier measurement is nearly a lower
  bound, and candidates are measured again in the order of these bounds, until the next bound is
  above the best new measurement (Minoux 1978, "Accelerated greedy algorithms").
- The text has parts. A candidate is measured on the first part. Only candidates that this cannot
  distinguish from the best one are measured on further parts.

At most ``RUNS_PER_CANDIDATE`` runs over the whole text are made for each candidate; a run over a
part counts by the part's share of the text.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch

RUNS_PER_CANDIDATE = 3
_CLOSE = 2.0
"""Two losses are close if they differ by less than this many standard errors."""
_BOUND = 2.0
"""A lower bound of a rise is this many standard errors below its last measurement."""


_EAGERNESS = 2.0
"""A round may use this many times its equal share of the runs that are left over."""
_ROUNDING = 1e-9


class Runs(Protocol):
    """Measures candidates, and counts what this costs.

    Attributes:
        shares: how many runs over the text a measurement on each part is.
        runs: the number of runs over the text so far.
    """

    shares: Sequence[float]
    runs: float

    def measure(self, candidate: int, part: int) -> torch.Tensor:
        """Return the losses on one part with the candidate added, ``(samples,)``."""

    def missing(self, candidate: int) -> float:
        """Return how many runs `accept` would make."""

    def drop(self, candidate: int) -> None:
        """Free what is kept of a candidate's measurements."""

    def accept(self, candidate: int) -> list[torch.Tensor]:
        """Add the candidate for good; return the losses on all parts."""


def lazy_greedy(runs: Runs, candidates: Iterable[int]) -> Iterator[int]:
    """Yield the candidates in the order in which greedy selection adds them.

    All losses are 0 before the first candidate is added.

    Args:
        runs: measures the candidates.
        candidates: their numbers.
    """
    left = list(candidates)
    budget = RUNS_PER_CANDIDATE * len(left)
    bounds = dict.fromkeys(left, -torch.inf)
    current = [torch.zeros(()) for _ in runs.shares]
    while left:
        current, added = _Round(runs, current, bounds, budget - (len(left) - 1)).add_one()
        left.remove(added)
        del bounds[added]
        yield added


class _Round:
    """One round of the selection, which adds one candidate.

    Args:
        runs: measures the candidates.
        current: the losses on each part before the round.
        bounds: by remaining candidate, a lower bound of its rise on the first part; the round
            updates it.
        limit: the value of ``runs.runs`` that the round must not exceed.
    """

    def __init__(
        self, runs: Runs, current: list[torch.Tensor], bounds: dict[int, float], limit: float
    ) -> None:
        self._runs, self._current, self._bounds, self._limit = runs, current, bounds, limit
        self._measured: dict[int, list[torch.Tensor]] = {}

    def add_one(self) -> tuple[list[torch.Tensor], int]:
        """Return the losses on all parts after the round, and the candidate that was added."""
        self._set_allowance()
        contenders = self._measure_first_part()
        leader = contenders[0]
        for challenger in contenders[1:]:
            leader = self._better(leader, challenger)
        return self._runs.accept(leader), leader

    def _set_allowance(self) -> None:
        """Lower the limit, to leave runs for the later rounds."""
        spent = self._runs.runs
        spare = self._limit - spent - 1  # one run for the candidate that is added
        first = sum(bound == -torch.inf for bound in self._bounds.values()) * self._runs.shares[0]
        extra = first + _EAGERNESS * (spare - first) / len(self._bounds)
        self._limit = spent + 1 + min(spare, extra)

    def _measure_first_part(self) -> list[int]:
        """Measure candidates on the first part; return them, the best one first."""
        rises: dict[int, float] = {}
        best = None
        for candidate in sorted(self._bounds, key=self._bounds.__getitem__):
            if best is not None and (
                self._bounds[candidate] >= rises[best] or not self._affordable(0, best)
            ):
                break
            losses = self._runs.measure(candidate, 0)
            self._measured[candidate] = [losses]
            rises[candidate], error = _mean_and_error(losses - self._current[0])
            self._bounds[candidate] = rises[candidate] - _BOUND * error
            if best is None or rises[candidate] < rises[best]:
                best, worse = candidate, best
            else:
                worse = candidate
            if worse is not None:
                self._runs.drop(worse)
        return sorted(rises, key=rises.__getitem__)

    def _better(self, leader: int, challenger: int) -> int:
        """Return the better one of two candidates; measure more parts while they are close."""
        parts = 1
        while self._difference(leader, challenger, parts) == 0 and parts < len(self._current):
            for candidate in (leader, challenger):
                if len(self._measured[candidate]) == parts:
                    if not self._affordable(parts, leader, challenger):
                        return leader
                    self._measured[candidate].append(self._runs.measure(candidate, parts))
            parts += 1
        wins = self._difference(leader, challenger, parts, close=0) > 0
        winner, loser = (challenger, leader) if wins else (leader, challenger)
        self._runs.drop(loser)
        return winner

    def _difference(self, leader: int, challenger: int, parts: int, close: float = _CLOSE) -> float:
        """Return by how much the leader's mean loss is larger; 0 if the two are close."""
        a, b = (torch.cat(self._measured[each][:parts]) for each in (leader, challenger))
        mean, error = _mean_and_error(a - b)
        return mean if abs(mean) > close * error else 0.0

    def _affordable(self, part: int, *candidates: int) -> bool:
        """Return whether one of the candidates can still be accepted after one more measurement."""
        missing = max(self._runs.missing(candidate) for candidate in candidates)
        after = self._runs.runs + self._runs.shares[part] + missing
        return after <= self._limit + _ROUNDING


def _mean_and_error(samples: torch.Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    error = samples.std(correction=0) / max(1, len(samples)) ** 0.5
    return float(samples.mean()), float(error)
