"""Budgets add up to what models cost, and the search misses nothing."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import build

from hybridize.compress.prune import search as search_module
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import (
    Memory,
    Parameters,
    parse_latency,
    parse_memory,
    parse_parameters,
)
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import search
from hybridize.errors import InputError
from hybridize.modeling.config import parameter_shapes
from hybridize.modeling.costs import cache_cost


def random_scores(config, seed=0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "ffn": (24,), "attention-queries": (3, 2), "attention": (3,), "mamba-channels": (6, 8),
        "mamba-state": (3, 10), "mamba-heads": (3, 2), "hidden": (32,),
    }  # fmt: skip
    return Scores(
        units={
            name: {
                place: torch.rand(shapes[name], generator=generator, dtype=torch.float64)
                for place in axis.places(config)
            }
            for name, axis in AXES.items()
        },
        blocks=torch.rand(len(config.blocks), generator=generator),
        influence=torch.zeros(len(config.blocks)),
        stream=torch.ones(len(config.blocks) + 1, config.hidden_size),
        gated={},
        source="",
        tokens=1,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_budgets_count_what_models_have(tied):
    config = build(tie_word_embeddings=tied).config
    shapes = parameter_shapes(config)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert Parameters(0).of(config) == count
    cost = cache_cost(config, 1000, 2)
    assert Memory(0, 1000, 3, 2, 2, 2).of(config) == 2 * count + 3 * (cost.kv + cost.state)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_the_search_is_exhaustive(share):
    """Against every combination, built and counted one by one."""
    config = build().config
    scores = random_scores(config)
    budget = Parameters(Parameters(0).of(config) * share)
    axes = ("depth", "ffn", "attention", "mamba-heads")
    found = search(config, scores, [budget], axes, best=10**6, multiple_of=6)
    order = sorted(range(6), key=lambda place: float(scores.blocks[place]))
    expected = {}
    for dropped, ffn, groups, heads in itertools.product(
        range(4), (24, 18, 12, 6), (3, 2, 1), (6, 3)
    ):
        gone = order[:dropped]
        widths = {"ffn": ffn, "attention": groups, "mamba-heads": heads}
        smaller = Architecture(widths, tuple(sorted(gone))).config(config)
        if budget.of(smaller) > budget.limit:
            continue
        damage = sum(float(scores.blocks[place]) for place in gone)
        for place in set(range(6)) - set(gone):
            lost = 0.0
            for name, count in widths.items():
                units = scores.units[name].get(place)
                if units is None or count == AXES[name].count(config):
                    continue
                values = sorted(units.flatten().tolist())
                if name == "mamba-heads":  # the lesser head of every group
                    values = units.min(-1).values.tolist()
                    lost += sum(values) / float(units.sum())
                else:
                    lost += sum(values[: len(values) - count]) / sum(values)
            damage += min(1, lost) * float(scores.blocks[place])
        key = (tuple(sorted(gone)), ffn, groups, heads)
        expected[key] = damage
    assert found.looked_at == 4 * 4 * 3 * 2
    assert found.fitting == len(expected)
    got = {}
    for candidate in found.candidates:
        full = {name: AXES[name].count(config) for name in ("ffn", "attention", "mamba-heads")}
        widths = full | candidate.architecture.widths
        key = (candidate.architecture.dropped, *widths.values())
        got[key] = candidate.damage
    assert got == pytest.approx(expected)
    assert [c.damage for c in found.candidates] == sorted(got.values())


def test_all_budgets_have_to_hold():
    config = build().config
    budgets = [Parameters(Parameters(0).of(config) * 0.8), Memory(30_000, 500, 1, 2, 2, 2)]
    found = search(config, random_scores(config), budgets, ("ffn", "attention", "depth"), best=50)
    for candidate in found.candidates:
        smaller = candidate.architecture.config(config)
        assert all(budget.of(smaller) <= budget.limit for budget in budgets)


def test_too_many_combinations_are_thinned_out(monkeypatch):
    config = build().config
    arguments = (config, random_scores(config), [Parameters(10**9)], ("depth", "ffn", "hidden"))
    whole = search(*arguments, best=1, multiple_of=1)
    monkeypatch.setattr(search_module, "_MOST_CANDIDATES", whole.looked_at // 3)
    fewer = search(*arguments, best=1, multiple_of=1)
    assert 1 < fewer.looked_at <= whole.looked_at // 3
    monkeypatch.setattr(search_module, "_MOST_CANDIDATES", 3)
    with pytest.raises(InputError, match=r"--axes: .* combinations; leave some axes out"):
        search(*arguments, best=1, multiple_of=1)


def test_layers_leave_whole():
    config = build().config
    found = search(
        config, random_scores(config), [Parameters(10**9)], ("depth",), best=99, blocks_per_layer=2
    )
    for candidate in found.candidates:
        dropped = candidate.architecture.dropped
        assert [place // 2 * 2 for place in dropped[::2]] == list(dropped[::2])
        assert all(b == a + 1 for a, b in zip(dropped[::2], dropped[1::2], strict=True))


def test_an_impossible_budget_names_the_smallest_there_is():
    config = build().config
    with pytest.raises(InputError, match=r"within 1,000 parameters; the smallest there is: \d"):
        search(config, random_scores(config), [Parameters(1000)], ("ffn",), best=1)


def test_budgets_in_a_users_words():
    config = build().config
    whole = Parameters(0).of(config)
    assert parse_parameters("50%", config).limit == whole // 2
    assert parse_parameters("1.5k", config).limit == 1500
    assert parse_memory("24GiB@64kx4", 2) == Memory(24 * 2**30, 65536, 4, 2, 2, 2)
    assert parse_memory("3MB@100", 4) == Memory(3e6, 100, 1, 4, 4, 4)
    assert parse_memory("3MB@100", 4, weight_bits=8, kv_bits=4) == Memory(3e6, 100, 1, 4, 1, 0.5)
    assert parse_latency("0.7", 512) == (0.7, 512, 1)
    assert parse_latency("70%@64kx8", 512) == (0.7, 65536, 8)


@given(text=st.text(max_size=12) | st.from_regex(r"[0-9.]{0,3}[%kGiB@x0-9]{0,8}"))
def test_any_other_words_are_one_clear_error(text):
    config = build().config
    for parse in (
        lambda: parse_parameters(text, config).limit,
        lambda: parse_memory(text, 2).limit,
        lambda: min(parse_latency(text, 512)),
    ):
        complaint = None
        try:
            assert parse() > 0
        except InputError as error:
            complaint = str(error)
        assert complaint is None or complaint.startswith(("--params", "--memory", "--latency"))
