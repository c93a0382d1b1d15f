"""Per-block widths: the total number of units stays, and no other distribution loses less."""

import itertools

import pytest
import torch
from pruning import assemble, build, prune_in_memory
from test_search import random_scores

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import Parameters
from hybridize.compress.prune.per_block_widths import vary_widths


@pytest.mark.parametrize("seed", range(5))
def test_no_other_distribution_loses_less(seed):
    config = build().config.spec
    scores = random_scores(config, seed)
    before = Architecture({"ffn": 12})
    after = vary_widths(before, config, scores, 6)
    blocks, axis = AXES["ffn"].blocks(config), AXES["ffn"]

    def loss(widths) -> float:
        return sum(
            float(scores.blocks[block_idx]) * axis.lost_share(scores.units["ffn"][block_idx], count)
            for block_idx, count in zip(blocks, widths, strict=True)
        )

    every = [w for w in itertools.product((6, 12, 18, 24), repeat=3) if sum(w) == 3 * 12]
    found = after.per_block["ffn"] if after.per_block else dict.fromkeys(blocks, 12)
    assert sum(found.values()) == 3 * 12
    assert loss(found.values()) == pytest.approx(min(loss(widths) for widths in every))
    assert Parameters(0).cost(after.apply(config)) == Parameters(0).cost(before.apply(config))


def test_groups_lose_equally_and_dropped_blocks_do_not_count():
    config = build().config.spec
    scores = random_scores(config, 3)
    before = Architecture({"ffn": 18, "mamba-heads": 3}, (1,))
    after = vary_widths(before, config, scores, 6)
    for block_idx, count in after.per_block.get("mamba-heads", {}).items():
        assert count % config.blocks[block_idx].n_groups == 0
    assert 1 not in after.per_block.get("ffn", {})


@torch.no_grad()
def test_removing_units_that_write_zeros_keeps_the_logits_with_per_block_widths():
    model = build()
    scores = random_scores(model.config.spec)
    architecture = Architecture(per_block={"ffn": {1: 6, 3: 24, 5: 12}, "attention": {2: 2}})
    for block_idx, count in architecture.per_block["ffn"].items():
        removed = scores.units["ffn"][block_idx].argsort()[: 24 - count]
        down_proj = f"model.blocks.{block_idx}.mixer.down_proj.weight"
        model.get_parameter(down_proj)[:, removed] = 0
    group = int(scores.units["attention"][2].argmin())
    sizes = model.config.blocks[2]
    width = sizes.num_heads // sizes.num_kv_heads * sizes.head_dim
    columns = slice(group * width, (group + 1) * width)
    model.get_parameter("model.blocks.2.mixer.o_proj.weight")[:, columns] = 0
    smaller = assemble(prune_in_memory(model, architecture, scores))
    widths = [block.intermediate_size for block in smaller.config.blocks[1::2]]
    assert widths == [6, 24, 12]
    ids = torch.randint(64, (2, 9))
    torch.testing.assert_close(smaller(ids).logits, model(ids).logits)
