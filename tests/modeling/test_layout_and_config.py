"""Layouts, sizes of blocks, and the configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.kinds import ATTENTION
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.layout import Layout
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.model_spec import parameter_shapes

ATTENTION_SIZES = st.builds(
    lambda kv, group, dim, bias, out, norm, rope: AttentionSizes(
        kv * group, kv, 2 * dim, bias, out, norm, rope
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.just(4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
MAMBA_SIZES = st.builds(
    lambda groups, per, dim, state, width, cbias, pbias: MambaSizes(
        groups * per, dim, groups, state, width, cbias, pbias
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
MLP_SIZES = st.builds(
    MLPSizes,
    st.integers(1, 40),
    st.sampled_from(["silu", "gelu", "relu2"]),
    st.booleans(),
    st.booleans(),
)
BLOCKS = st.lists(st.one_of(ATTENTION_SIZES, MAMBA_SIZES, MLP_SIZES), min_size=1, max_size=7)


def test_layout_lists_and_swaps_blocks():
    layout = Layout("*-*-M-")
    assert str(layout) == "*-*-M-"
    assert len(layout) == 6
    assert layout.indices(ATTENTION) == (0, 2)
    swapped = layout.swap({2})
    assert (swapped.pattern, swapped.swapped) == ("*-M-M-", {2})
    assert swapped.swap({0}).swapped == {0, 2}


@pytest.mark.parametrize("pattern", ["", "*-x", "m-", "* -"])
def test_layout_rejects_other_letters(pattern):
    with pytest.raises(ValueError, match="pattern"):
        Layout(pattern)


def test_only_attention_can_be_swapped():
    with pytest.raises(ValueError, match="block 1 is not attention"):
        Layout("*-M").swap({1})


@given(BLOCKS)
def test_configuration_round_trip_keeps_every_block(blocks):
    config = HybridConfig.from_blocks(blocks, hidden_size=16, vocab_size=20)
    assert config.blocks == tuple(blocks)
    again = HybridConfig.from_dict(config.to_dict())
    assert again.blocks == tuple(blocks)
    assert again.spec.blocks == tuple(blocks)
    assert HybridConfig.from_spec(again.spec).to_dict() == config.to_dict()
    assert again.spec.replace_blocks(blocks[:1]).blocks == tuple(blocks[:1])


def test_configuration_reads_old_field_names():
    config = HybridConfig.from_dict(
        {
            "layout": "*M-*M-",
            "hidden_size": 16,
            "attention": {"heads": 4, "kv_heads": 2, "head_dim": 8},
            "mamba": {"heads": 4, "head_dim": 8, "groups": 2, "d_state": 5, "conv_width": 3},
            "mlp": {"width": 24},
            "overrides": {
                "3": {"heads": 2},
                "4": {"groups": 4, "conv_width": 2},
                "5": {"width": 7},
            },
        }
    )
    assert config.blocks == (
        AttentionSizes(num_heads=4, num_kv_heads=2, head_dim=8),
        MambaSizes(num_heads=4, head_dim=8, n_groups=2, d_state=5, conv_kernel=3),
        MLPSizes(intermediate_size=24),
        AttentionSizes(num_heads=2, num_kv_heads=2, head_dim=8),
        MambaSizes(num_heads=4, head_dim=8, n_groups=4, d_state=5, conv_kernel=2),
        MLPSizes(intermediate_size=7),
    )
    assert config.to_dict()["mlp"]["intermediate_size"] == 24
    assert config.to_dict()["overrides"]["4"] == {"n_groups": 4, "conv_kernel": 2}


def test_an_old_field_name_beside_the_current_one_is_rejected():
    with pytest.raises(ValueError, match=r"block 0.*'width'"):
        HybridConfig(layout="-", mlp={"width": 3, "intermediate_size": 3})


@given(BLOCKS, st.booleans())
def test_parameter_shapes_equal_those_of_the_model(blocks, tied):
    import torch

    config = HybridConfig.from_blocks(
        blocks, hidden_size=16, vocab_size=20, tie_word_embeddings=tied
    )
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == parameter_shapes(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: AttentionSizes(3, 2, 8), "not a multiple of 2 KV heads"),
        (lambda: MambaSizes(3, 8, 2, 8), "not a multiple of 2 groups"),
        (lambda: MLPSizes(0), "intermediate_size is 0"),
        (lambda: AttentionSizes(4, 2, 8.0), "head_dim is 8.0"),
    ],
)
def test_impossible_sizes_are_rejected(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layout": "M-x"}, "letter 'x'"),
        ({"layout": "*", "mlp": {"intermediate_size": 3}}, "no 'attention' sizes"),
        ({"layout": "-", "mlp": {"intermediate_size": 3, "depth": 1}}, "block 0"),
        ({"layout": "-", "mlp": {"intermediate_size": -3}}, "block 0"),
    ],
)
def test_configuration_names_the_wrong_block(fields, reason):
    with pytest.raises(ValueError, match=reason):
        HybridConfig(**fields)


def test_rope_needs_one_head_dim():
    blocks = [AttentionSizes(2, 2, 8), AttentionSizes(2, 2, 4)]
    with pytest.raises(ValueError, match="differ in head_dim"):
        HybridConfig.from_blocks(blocks)
