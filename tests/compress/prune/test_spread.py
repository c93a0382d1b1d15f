"""Widths of each block's own: as many units as before, and nowhere better."""

import itertools

import pytest
import torch
from pruning import InMemory, assemble, build
from test_search import random_scores

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import Parameters
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.spread import spread


@pytest.mark.parametrize("seed", range(5))
def test_no_other_distribution_loses_less(seed):
    config = build().config
    scores = random_scores(config, seed)
    before = Architecture({"ffn": 12})
    after = spread(before, config, scores, 6)
    places, axis = AXES["ffn"].places(config), AXES["ffn"]

    def loss(widths) -> float:
        lost = zip(places, widths, strict=True)
        return sum(float(scores.blocks[p]) * axis.lost(scores.units["ffn"][p], n) for p, n in lost)

    every = [w for w in itertools.product((6, 12, 18, 24), repeat=3) if sum(w) == 3 * 12]
    got = after.single["ffn"] if after.single else dict.fromkeys(places, 12)
    assert sum(got.values()) == 3 * 12
    assert loss(got.values()) == pytest.approx(min(loss(widths) for widths in every))
    assert Parameters(0).of(after.config(config)) == Parameters(0).of(before.config(config))


def test_heads_leave_every_group_alike_and_dropped_blocks_count_for_nothing():
    config = build().config
    scores = random_scores(config, 3)
    after = spread(Architecture({"ffn": 18, "mamba-heads": 3}, (1,)), config, scores, 6)
    for place, count in after.single.get("mamba-heads", {}).items():
        assert count % config.blocks[place].n_groups == 0
    assert 1 not in after.single.get("ffn", {})


@torch.no_grad()
def test_the_cut_is_exact_where_what_leaves_is_zero():
    model = build()
    scores = random_scores(model.config)
    architecture = Architecture(single={"ffn": {1: 6, 3: 24, 5: 12}, "attention": {2: 2}})
    for place, count in architecture.single["ffn"].items():
        gone = scores.units["ffn"][place].argsort()[: 24 - count]
        model.get_parameter(f"model.blocks.{place}.mixer.down_proj.weight")[:, gone] = 0
    group = int(scores.units["attention"][2].argmin())
    sizes = model.config.blocks[2]
    width = sizes.num_heads // sizes.num_kv_heads * sizes.head_dim
    columns = slice(group * width, (group + 1) * width)
    model.get_parameter("model.blocks.2.mixer.o_proj.weight")[:, columns] = 0
    cut = CutTensors(InMemory(model), model.config, architecture, scores)
    smaller = assemble(cut, cut.config)
    assert [block.intermediate_size for block in smaller.config.blocks[1::2]] == [6, 24, 12]
    ids = torch.randint(64, (2, 9))
    torch.testing.assert_close(smaller(ids).logits, model(ids).logits)
