"""What is zero leaves a model without a trace, whatever the axis."""

import pytest
import torch
from pruning import InMemory, assemble, build

from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.importance import measure
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
def silence(model: HybridForCausalLM, axis: str, seed: int) -> None:
    """Set to zero what writes the units that may leave, a random choice."""
    generator = torch.Generator().manual_seed(seed)

    def gone(*shape: int, leave: int) -> torch.Tensor:
        """A mask with ``leave`` random places of the last dimension."""
        order = torch.rand(*shape, generator=generator).argsort(-1)
        return order < leave

    if axis == "hidden":
        rows = gone(32, leave=12)
        for name, parameter in model.named_parameters():
            module = name.split(".")[-2]
            if module in ("embed_tokens", "lm_head"):
                parameter[:, rows] = 0
            if module in ("o_proj", "down_proj", "out_proj"):
                parameter[rows] = 0
        return
    for block in model.model.blocks:
        mixer, sizes = block.mixer, block.mixer
        kind = type(mixer).__name__
        if axis == "ffn" and kind == "FeedForward":
            mixer.up_proj.weight[gone(24, leave=9)] = 0
        if axis == "attention-queries" and kind == "Attention":
            rows = gone(3, 2, leave=1).flatten().repeat_interleave(8)
            mixer.o_proj.weight[:, rows] = 0
        if axis == "attention" and kind == "Attention":
            rows = gone(3, leave=1).repeat_interleave(16)
            mixer.o_proj.weight[:, rows] = 0
        if kind != "Mamba2":
            continue
        sizes = mixer.sizes
        inner = {
            "mamba-heads": lambda: gone(3, 2, leave=1).flatten().repeat_interleave(8),
            "mamba-channels": lambda: gone(6, 8, leave=3).flatten(),
        }.get(axis)
        if inner is not None:
            mixer.in_proj.weight[: sizes.d_inner][inner_rows := inner()] = 0  # the gate
            mixer.in_proj.bias[: sizes.d_inner][inner_rows] = 0
        if axis == "mamba-state":
            start = sizes.d_inner + sizes.d_inner  # B, behind the gate and x
            rows = start + gone(3, 10, leave=4).flatten().nonzero().flatten()
            mixer.in_proj.weight[rows] = 0
            mixer.in_proj.bias[rows] = 0
            mixer.conv1d.bias[rows - sizes.d_inner] = 0


def scores_of(model: HybridForCausalLM):
    ids = tokens(4, 40, seed=3)
    dataset = PackedDataset(ids.int(), torch.zeros_like(ids).int())
    return measure(
        None, InMemory(model), model.config, dataset, torch.device("cpu"), source="", offload=True
    )


@pytest.mark.parametrize("axis", list(AXES))
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_units_that_write_nothing_leave_no_trace(axis, seed):
    model = build()
    silence(model, axis, seed)
    before = model(tokens()).logits
    assert set(NARROWER) == set(AXES)
    architecture = Architecture({axis: NARROWER[axis]})
    cut = CutTensors(InMemory(model), model.config, architecture, scores_of(model))
    smaller = assemble(cut, cut.config)
    assert AXES[axis].count(cut.config) == NARROWER[axis]
    count = sum(p.numel() for p in smaller.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    # Norms are corrected by what was measured, in float32.
    torch.testing.assert_close(smaller(tokens()).logits, before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_all_axes_at_once_leave_no_trace_either():
    model = build()
    for axis in ("ffn", "attention", "mamba-channels", "mamba-state", "hidden"):
        silence(model, axis, seed=2)
    before = model(tokens()).logits
    widths = {a: NARROWER[a] for a in NARROWER if a not in ("mamba-heads", "attention-queries")}
    cut = CutTensors(InMemory(model), model.config, Architecture(widths), scores_of(model))
    smaller = assemble(cut, cut.config)
    torch.testing.assert_close(smaller(tokens()).logits, before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blocks_that_write_nothing_leave_no_trace():
    model = build()
    for place, name in ((1, "down_proj"), (4, "out_proj")):
        for parameter in getattr(model.model.blocks[place].mixer, name).parameters():
            parameter.zero_()
    before = model(tokens()).logits
    cut = CutTensors(InMemory(model), model.config, Architecture(dropped=(1, 4)), scores_of(model))
    assert cut.config.layout == "M*--"
    torch.testing.assert_close(assemble(cut, cut.config)(tokens()).logits, before)


@torch.no_grad()
def test_what_matters_more_stays():
    """Every axis keeps the units with which the block's output stays closest."""
    model = build()
    mlp = model.model.blocks[1].mixer
    mlp.up_proj.weight[5:] *= 1e-3
    cut = CutTensors(InMemory(model), model.config, Architecture({"ffn": 5}), scores_of(model))
    assert torch.equal(cut.get("model.blocks.1.mixer.up_proj.weight"), mlp.up_proj.weight[:5])
    assert torch.equal(
        cut.get("model.blocks.1.mixer.down_proj.weight"), mlp.down_proj.weight[:, :5]
    )


@torch.no_grad()
def test_heads_leave_every_group_alike():
    model = build()
    scores = scores_of(model)
    cut = CutTensors(InMemory(model), model.config, Architecture({"mamba-heads": 3}), scores)
    for place in (0, 4):
        sizes = cut.config.blocks[place]
        assert (sizes.num_heads, sizes.n_groups) == (3, 3)
        kept = AXES["mamba-heads"].keep(scores.units["mamba-heads"][place], 3)
        assert [int(head) // 2 for head in kept] == [0, 1, 2]
    assert not AXES["mamba-heads"].possible(model.config, 4)
