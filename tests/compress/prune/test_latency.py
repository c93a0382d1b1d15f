"""The budget of time: rates are fitted correctly, and the result meets the budget."""

import pytest
import torch
from pruning import build

import hybridize
from hybridize.compress.prune.latency import Latency, fit, latency_budget, step_seconds
from tiny import write_stock, write_tokenizer


@pytest.mark.parametrize("rates", [(2e-4, 3e-9, 5e-10), (0.0, 3e-9, 0.0), (1e-3, 0.0, 1e-9)])
def test_the_fit_recovers_known_rates(rates):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(8, 2, generator=generator) * torch.tensor([1e6, 1e5])
    features = [(1.0, *row) for row in sizes.tolist()]
    seconds = [sum(r * f for r, f in zip(rates, row, strict=True)) for row in features]
    assert fit(features, seconds) == pytest.approx(rates, rel=1e-6, abs=1e-15)


def test_rates_are_never_negative():
    features = [(1.0, 10.0, 0.0), (1.0, 20.0, 0.0), (1.0, 30.0, 1.0)]
    assert min(fit(features, [3.0, 2.0, 1.0])) >= 0


def test_a_budget_adds_up_the_time_of_all_blocks():
    config = build().config.spec
    budget = latency_budget(
        "0.5@64x2", config, ("ffn", "hidden"), 6, torch.device("cpu"), torch.float32
    )
    assert set(budget.rates) == {"MLPSizes", "AttentionSizes", "MambaSizes", "rest"}
    assert budget.limit == pytest.approx(0.5 * budget.cost(config))
    fixed = {"MLPSizes": 1.0, "AttentionSizes": 10.0, "MambaSizes": 100.0, "rest": 1000.0}
    known = Latency(1.0, 64, 2, {name: (seconds, 0.0, 0.0) for name, seconds in fixed.items()})
    assert known.cost(config) == 1000 + 2 * 100 + 10 + 3
    assert known.describe(0.0123) == "12.3 ms per step at 64 tokens × 2"


def test_decoding_steps_are_timed():
    model = build().float()
    assert len(step_seconds([model, model], 32, 2, rounds=2)) == 2


def test_prune_with_a_latency_budget(tmp_path):
    write_stock(tmp_path / "in", "llama", pad_token_id=3)
    write_tokenizer(tmp_path / "in")
    (tmp_path / "text.txt").write_text("A few words to measure on, 0123. " * 99)
    result = hybridize.prune(
        tmp_path / "in", tmp_path / "out", latency="0.8@64", axes=("depth", "ffn"),
        calibration=tmp_path / "text.txt", calibration_tokens=2048, candidates=2,
    )  # fmt: skip
    assert result.parameters_after < result.parameters_before
    assert len(result.step_seconds) == 2
    assert "ms per step at 64 tokens" in result.costs_before[0]
