"""Removing units that write zeros does not change the logits, whatever the axis."""

import pytest
import torch
from pruning import InMemory, assemble, build, prune_in_memory

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.importance import measure_importance
from hybridize.data.packing import PackedDataset
from hybridize.modeling.model import HybridForCausalLM
from tiny import tokens

NARROWER = {
    "ffn": 15,
    "attention-queries": 1,
    "attention": 2,
    "mamba-channels": 5,
    "mamba-state": 6,
    "mamba-heads": 3,
    "hidden": 20,
}


@torch.no_grad()
def zero_units(model: HybridForCausalLM, axis: str, seed: int) -> None:
    """Choose the units to remove at random, and set the weights that write them to zero."""
    generator = torch.Generator().manual_seed(seed)

    def chosen(*shape: int, count: int) -> torch.Tensor:
        """Return a mask with ``count`` random entries in the last dimension."""
        order = torch.rand(*shape, generator=generator).argsort(-1)
        return order < count

    if axis == "hidden":
        rows = chosen(32, count=12)
        for name, parameter in model.named_parameters():
            module = name.split(".")[-2]
            if module in ("embed_tokens", "lm_head"):
                parameter[:, rows] = 0
            if module in ("o_proj", "down_proj", "out_proj"):
                parameter[rows] = 0
        return
    for block in model.model.blocks:
        mixer = block.mixer
        kind = type(mixer).__name__
        if axis == "ffn" and kind == "FeedForward":
            mixer.up_proj.weight[chosen(24, count=9)] = 0
        if axis == "attention-queries" and kind == "Attention":
            rows = chosen(3, 2, count=1).flatten().repeat_interleave(8)
            mixer.o_proj.weight[:, rows] = 0
        if axis == "attention" and kind == "Attention":
            rows = chosen(3, count=1).repeat_interleave(16)
            mixer.o_proj.weight[:, rows] = 0
        if kind != "Mamba2":
            continue
        sizes = mixer.sizes
        inner = {
            "mamba-heads": lambda: chosen(3, 2, count=1).flatten().repeat_interleave(8),
            "mamba-channels": lambda: chosen(6, 8, count=3).flatten(),
        }.get(axis)
        if inner is not None:
            mixer.in_proj.weight[: sizes.d_inner][inner_rows := inner()] = 0  # the gate
            mixer.in_proj.bias[: sizes.d_inner][inner_rows] = 0
        if axis == "mamba-state":
            start = sizes.d_inner + sizes.d_inner  # B comes after the gate and x
            rows = start + chosen(3, 10, count=4).flatten().nonzero().flatten()
            mixer.in_proj.weight[rows] = 0
            mixer.in_proj.bias[rows] = 0
            mixer.conv1d.bias[rows - sizes.d_inner] = 0


def scores_of(model: HybridForCausalLM):
    ids = tokens(4, 40, seed=3)
    dataset = PackedDataset(ids.int(), torch.zeros_like(ids).int())
    return measure_importance(
        None, InMemory(model), model.config.spec, dataset, torch.device("cpu"), source="",
        offload=True,
    )  # fmt: skip


@pytest.mark.parametrize("axis", list(AXES))
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_removing_units_that_write_zeros_keeps_the_logits(axis, seed):
    model = build()
    zero_units(model, axis, seed)
    before = model(tokens()).logits
    assert set(NARROWER) == set(AXES)
    pruned = prune_in_memory(model, Architecture({axis: NARROWER[axis]}), scores_of(model))
    smaller = assemble(pruned)
    assert AXES[axis].count_in(pruned.config) == NARROWER[axis]
    count = sum(p.numel() for p in smaller.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    # Norms are rescaled by measurements in float32.
    torch.testing.assert_close(smaller(tokens()).logits, before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_all_axes_together_keep_the_logits():
    model = build()
    for axis in ("ffn", "attention", "mamba-channels", "mamba-state", "hidden"):
        zero_units(model, axis, seed=2)
    before = model(tokens()).logits
    widths = {a: NARROWER[a] for a in NARROWER if a not in ("mamba-heads", "attention-queries")}
    smaller = assemble(prune_in_memory(model, Architecture(widths), scores_of(model)))
    torch.testing.assert_close(smaller(tokens()).logits, before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_removing_blocks_that_write_zeros_keeps_the_logits():
    model = build()
    for block_idx, name in ((1, "down_proj"), (4, "out_proj")):
        for parameter in getattr(model.model.blocks[block_idx].mixer, name).parameters():
            parameter.zero_()
    before = model(tokens()).logits
    pruned = prune_in_memory(model, Architecture(dropped=(1, 4)), scores_of(model))
    assert pruned.config.layout == "M*--"
    torch.testing.assert_close(assemble(pruned)(tokens()).logits, before)


@torch.no_grad()
def test_the_most_important_units_are_kept():
    model = build()
    mlp = model.model.blocks[1].mixer
    mlp.up_proj.weight[5:] *= 1e-3
    pruned = prune_in_memory(model, Architecture({"ffn": 5}), scores_of(model))
    assert torch.equal(pruned.get("model.blocks.1.mixer.up_proj.weight"), mlp.up_proj.weight[:5])
    assert torch.equal(
        pruned.get("model.blocks.1.mixer.down_proj.weight"), mlp.down_proj.weight[:, :5]
    )


@torch.no_grad()
def test_every_group_loses_the_same_number_of_heads():
    model = build()
    scores = scores_of(model)
    pruned = prune_in_memory(model, Architecture({"mamba-heads": 3}), scores)
    for block_idx in (0, 4):
        sizes = pruned.config.blocks[block_idx]
        assert (sizes.num_heads, sizes.n_groups) == (3, 3)
        kept = AXES["mamba-heads"].keep(scores.units["mamba-heads"][block_idx], 3)
        assert [int(head) // 2 for head in kept] == [0, 1, 2]
    assert not AXES["mamba-heads"].allows(model.config.blocks[0], 4)
