"""The lazy greedy selection on made-up costs, compared with plain greedy selection."""

import pytest
import torch

from hybridize.conversion.lazy_greedy import RUNS_PER_CANDIDATE, lazy_greedy

SAMPLES = 50


class MadeUpRuns:
    """Losses of sets of candidates on some parts: a mean for each set, plus noise per sample."""

    def __init__(self, count, *, parts=4, noise=0.0, seed=0, lone=None, growth=0.3):
        generator = torch.Generator().manual_seed(seed)
        self._alone = torch.rand(count, generator=generator) + 0.1 if lone is None else lone
        pairs = torch.rand(count, count, generator=generator).triu(1)
        self._pairs = pairs * growth if lone is None else torch.zeros(count, count)
        self._noise = noise * torch.randn(count, parts, SAMPLES, generator=generator)
        self.shares = [1 / parts] * parts
        self.runs, self.chosen, self.measured, self.log = 0.0, [], {}, []

    def loss(self, chosen):
        indices = sorted(chosen)
        return float(self._alone[indices].sum() + self._pairs[indices][:, indices].sum())

    def _losses(self, candidate, part):
        noise = self._noise[[*self.chosen, candidate], part].sum(0)
        return self.loss([*self.chosen, candidate]) + noise.double()

    def measure(self, candidate, part):
        assert part not in self.measured.get(candidate, {})
        self.runs += self.shares[part]
        self.log.append((len(self.chosen), candidate, part))
        self.measured.setdefault(candidate, set()).add(part)
        return self._losses(candidate, part)

    def missing(self, candidate):
        measured = self.measured.get(candidate, set())
        return sum(share for part, share in enumerate(self.shares) if part not in measured)

    def drop(self, candidate):
        self.measured.pop(candidate, None)

    def accept(self, candidate):
        self.runs += self.missing(candidate)
        losses = [self._losses(candidate, part) for part in range(len(self.shares))]
        self.chosen.append(candidate)
        self.measured.clear()
        return losses


def plain_greedy(runs, count):
    left, chosen = list(range(count)), []
    while left:
        best = min(left, key=lambda candidate: runs.loss([*chosen, candidate]))
        chosen.append(best)
        left.remove(best)
    return chosen


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("parts", "growth"), [(1, 0.005), (3, 0.3), (4, 0.3)])
def test_growing_rises_give_the_plain_selection_with_fewer_runs(seed, parts, growth):
    runs, count = MadeUpRuns(12, parts=parts, seed=seed, growth=growth), 12
    assert list(lazy_greedy(runs, range(count))) == plain_greedy(runs, count)
    assert runs.runs < count * (count + 1) / 2


@pytest.mark.parametrize("count", [1, 2, 5, 30])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("noise", [0.0, 0.2, 5.0])
def test_the_runs_stay_within_the_budget(count, parts, noise):
    # With much noise, all candidates are always close to each other.
    for seed in range(4):
        runs = MadeUpRuns(count, parts=parts, noise=noise, seed=seed)
        assert sorted(lazy_greedy(runs, range(count))) == list(range(count))
        assert runs.runs <= RUNS_PER_CANDIDATE * count + 1e-6


def test_all_equal_candidates_stay_within_the_budget():
    runs = MadeUpRuns(9, noise=1.0, lone=torch.ones(9))
    assert len(list(lazy_greedy(runs, range(9)))) == 9
    assert runs.runs <= RUNS_PER_CANDIDATE * 9 + 1e-6


def test_only_close_candidates_are_measured_on_more_parts():
    lone = torch.tensor([1.0, 1.001, 3.0, 4.0])
    runs = MadeUpRuns(4, noise=0.01, lone=lone)
    selection = lazy_greedy(runs, range(4))
    assert next(selection) in (0, 1)
    first_round = [(candidate, part) for number, candidate, part in runs.log if number == 0]
    assert {(c, 0) for c in range(4)} <= set(first_round)
    grown = {candidate for candidate, part in first_round if part > 0}
    assert grown == {0, 1}
    assert next(selection) in (0, 1)
    second_round = {candidate for number, candidate, _ in runs.log if number == 1}
    assert len(second_round) == 1  # the others have cost more before


def test_the_better_of_two_close_candidates_is_found_on_the_whole_text():
    wins = 0
    for seed in range(20):
        runs = MadeUpRuns(2, parts=4, noise=0.3, lone=torch.tensor([1.0, 1.02]), seed=seed)
        truth = [
            float(torch.cat([runs._losses(c, part) for part in range(4)]).mean()) for c in (0, 1)
        ]
        wins += next(lazy_greedy(runs, range(2))) == truth.index(min(truth))
    assert wins >= 18  # two standard errors are no certainty
