"""Budgets count the real costs of models, and the search finds every architecture."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruning import BLOCKS, build

from hybridize.compress.prune import search as search_module
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import (
    Memory,
    Parameters,
    memory_budget,
    parameter_budget,
)
from hybridize.compress.prune.budget_text import parse_latency
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import search
from hybridize.errors import InputError
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes


def random_scores(config, seed=0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "ffn": (24,), "attention-queries": (3, 2), "attention": (3,), "mamba-channels": (6, 8),
        "mamba-state": (3, 10), "mamba-heads": (3, 2), "hidden": (32,),
    }  # fmt: skip
    return Scores(
        units={
            name: {
                block_idx: torch.rand(shapes[name], generator=generator, dtype=torch.float64)
                for block_idx in axis.blocks(config)
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
def test_budgets_equal_the_size_of_models(tied):
    config = build(tie_word_embeddings=tied).config.spec
    shapes = parameter_shapes(config)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert Parameters(0).cost(config) == count
    cost = cache_cost(config, 1000, 2)
    assert Memory(0, 1000, 3, 2, 2, 2).cost(config) == 2 * count + 3 * (cost.kv + cost.state)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_the_search_finds_every_architecture(share):
    """Compares with all combinations, which are built and counted one by one."""
    config = build().config.spec
    scores = random_scores(config)
    budget = Parameters(Parameters(0).cost(config) * share)
    axes = ("depth", "ffn", "attention", "mamba-heads")
    found = search(config, scores, [budget], axes, count=10**6, multiple_of=6)
    order = sorted(range(6), key=lambda block_idx: float(scores.blocks[block_idx]))
    expected = {}
    for dropped, ffn, groups, heads in itertools.product(
        range(4), (24, 18, 12, 6), (3, 2, 1), (6, 3)
    ):
        removed = order[:dropped]
        widths = {"ffn": ffn, "attention": groups, "mamba-heads": heads}
        smaller = Architecture(widths, tuple(sorted(removed))).apply(config)
        if budget.cost(smaller) > budget.limit:
            continue
        damage = sum(float(scores.blocks[block_idx]) for block_idx in removed)
        for block_idx in set(range(6)) - set(removed):
            lost = 0.0
            for name, count in widths.items():
                units = scores.units[name].get(block_idx)
                if units is None or count == AXES[name].count_in(config):
                    continue
                values = sorted(units.flatten().tolist())
                if name == "mamba-heads":  # the less important head of each group
                    values = units.min(-1).values.tolist()
                    lost += sum(values) / float(units.sum())
                else:
                    lost += sum(values[: len(values) - count]) / sum(values)
            damage += min(1, lost) * float(scores.blocks[block_idx])
        key = (tuple(sorted(removed)), ffn, groups, heads)
        expected[key] = damage
    assert found.considered == 4 * 4 * 3 * 2
    assert found.fitting == len(expected)
    got = {}
    for candidate in found.best:
        full = {name: AXES[name].count_in(config) for name in ("ffn", "attention", "mamba-heads")}
        widths = full | candidate.architecture.widths
        key = (candidate.architecture.dropped, *widths.values())
        got[key] = candidate.damage
    assert got == pytest.approx(expected)
    assert [c.damage for c in found.best] == sorted(got.values())


def test_all_budgets_are_met():
    config = build().config.spec
    budgets = [Parameters(Parameters(0).cost(config) * 0.8), Memory(30_000, 500, 1, 2, 2, 2)]
    found = search(config, random_scores(config), budgets, ("ffn", "attention", "depth"), count=50)
    for candidate in found.best:
        smaller = candidate.architecture.apply(config)
        assert all(budget.cost(smaller) <= budget.limit for budget in budgets)


def test_fewer_sizes_are_tried_if_there_are_too_many_combinations(monkeypatch):
    config = build().config.spec
    arguments = (config, random_scores(config), [Parameters(10**9)], ("depth", "ffn", "hidden"))
    whole = search(*arguments, count=1, multiple_of=1)
    monkeypatch.setattr(search_module, "_MAX_ARCHITECTURES", whole.considered // 3)
    fewer = search(*arguments, count=1, multiple_of=1)
    assert 1 < fewer.considered <= whole.considered // 3
    monkeypatch.setattr(search_module, "_MAX_ARCHITECTURES", 3)
    with pytest.raises(InputError, match=r"`axes`: .* combinations are too many; leave some"):
        search(*arguments, count=1, multiple_of=1)


def test_layers_are_removed_as_a_whole():
    config = build().config.spec
    found = search(
        config, random_scores(config), [Parameters(10**9)], ("depth",), count=99, blocks_per_layer=2
    )
    for candidate in found.best:
        dropped = candidate.architecture.dropped
        assert [block_idx // 2 * 2 for block_idx in dropped[::2]] == list(dropped[::2])
        assert all(b == a + 1 for a, b in zip(dropped[::2], dropped[1::2], strict=True))


def test_the_error_for_an_impossible_budget_names_the_smallest_model():
    config = build().config.spec
    with pytest.raises(
        InputError, match=r"within 1,000 parameters .*; the smallest has [\d,]+ param"
    ):
        search(config, random_scores(config), [Parameters(1000)], ("ffn",), count=1)


def test_spelling_of_budgets():
    config = build().config.spec
    whole = Parameters(0).cost(config)
    assert parameter_budget("50%", config).limit == whole // 2
    assert parameter_budget("1.5k", config).limit == 1500
    assert memory_budget("24GiB@64kx4", 2) == Memory(24 * 2**30, 65536, 4, 2, 2, 2)
    assert memory_budget("3MB@100", 4) == Memory(3e6, 100, 1, 4, 4, 4)
    assert memory_budget("3MB@100", 4, weight_bits=8, kv_bits=4) == Memory(3e6, 100, 1, 4, 1, 0.5)
    assert parse_latency("0.7") == (0.7, None, 1)
    assert parse_latency("70%@64kx8") == (0.7, 65536, 8)


CONFIG = ModelSpec(tuple(BLOCKS), hidden_size=32)


@given(text=st.text(max_size=12) | st.from_regex(r"[0-9.]{0,3}[%kGiB@x0-9]{0,8}"))
def test_other_spellings_raise_an_input_error_that_names_the_option(text):
    limits = {
        "params": lambda: parameter_budget(text, CONFIG).limit,
        "memory": lambda: memory_budget(text, 2).limit,
        "latency": lambda: min(part for part in parse_latency(text) if part is not None),
    }
    for name, limit in limits.items():
        complaint = None
        try:
            PruneConfig(**{name: text})
        except InputError as error:
            complaint = str(error)
        if complaint is None:
            assert limit() > 0
        else:
            assert complaint.startswith(f"`{name}=")
