"""Which attention blocks a conversion keeps, and the sizes of the new blocks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.conversion.plan import MambaChoice, keep_uniform, mamba_sizes, plan_conversion
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec


def transformer(layers: int, attention: AttentionSizes | None = None, **fields) -> ModelSpec:
    blocks = [attention or AttentionSizes(4, 2, 8), MLPSizes(48)] * layers
    fields = {"vocab_size": 64, "hidden_size": 32, "max_position_embeddings": 256} | fields
    return ModelSpec(blocks, **fields)


@given(st.integers(1, 200), st.data())
def test_uniform_blocks_are_evenly_spaced_and_avoid_both_ends(count, data):
    keep = data.draw(st.integers(0, count))
    kept = keep_uniform(count, keep)
    assert len(kept) == len(set(kept)) == keep
    assert list(kept) == sorted(kept)
    assert all(0 <= index < count for index in kept)
    if keep < count:
        assert 0 not in kept
    if keep <= count - 2:
        assert count - 1 not in kept
        gaps = [b - a for a, b in itertools.pairwise(kept)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("count", "keep", "want"),
    [
        (5, 1, (2,)),
        (8, 2, (2, 5)),
        (32, 4, (4, 12, 19, 27)),
        (2, 1, (1,)),
        (1, 1, (0,)),
        (9, 0, ()),
    ],
)
def test_uniform_examples(count, keep, want):
    assert keep_uniform(count, keep) == want


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, "M-M-*-M-M-*-M-M-"),
        ({"attention": "2"}, "M-M-*-M-M-*-M-M-"),
        ({"attention": "12%"}, "M-M-M-M-*-M-M-M-"),
        ({"attention": "1%"}, "M-M-M-M-*-M-M-M-"),
        ({"attention": "0"}, "M-M-M-M-M-M-M-M-"),
        ({"attention": "100%"}, "*-*-*-*-*-*-*-*-"),
        ({"keep": (0, 7)}, "*-M-M-M-M-M-M-*-"),
        ({"keep": ()}, "M-M-M-M-M-M-M-M-"),
        ({"pattern": "*-M-*-M-*-M-*-M-"}, "*-M-*-M-*-M-*-M-"),
    ],
)
def test_options_determine_the_layout(options, layout):
    plan = plan_conversion(transformer(8), **options)
    assert plan.layout.pattern == plan.target.layout == layout
    assert len(plan.kept) == layout.count("*")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attention": "9"}, "`attention=9`: .* 0 to 8"),
        ({"attention": "-1"}, "`attention=-1`"),
        ({"attention": "101%"}, "`attention=101%`"),
        ({"attention": "half"}, "`attention=half`"),
        ({"attention": "nan%"}, "`attention=nan%`"),
        ({"keep": (99,)}, "`keep=99`: .* 8, numbered 0 to 7"),
        ({"keep": (-1,)}, "`keep=-1`"),
        ({"pattern": "*-M-"}, "4 blocks, but the model has 16"),
        ({"pattern": "*-M-*-M-*-M-*-Mx"}, "letter 'x'"),
        ({"pattern": "-*M-*-M-*-M-*-M-"}, "block 0 is '\\*' in the model and '-'"),
        ({"keep": (1,), "attention": "2"}, "`attention` and `keep` exclude"),
        ({"mamba": MambaChoice(groups="3")}, "`ssm_groups=3`: .* 1, 2, 4"),
        ({"mamba": MambaChoice(groups="many")}, "`ssm_groups=many`"),
        ({"format_name": "mamba2"}, "`format=mamba2`: .* Mamba-2 blocks only"),
        ({"format_name": "granitemoehybrid", "attention": "0"}, "at least one attention block"),
    ],
)
def test_impossible_options_are_explained(options, reason):
    with pytest.raises(InputError, match=reason):
        plan_conversion(transformer(8), **options)


def test_a_model_without_attention_is_rejected():
    config = ModelSpec([MambaSizes(4, 8, 4, 8)], vocab_size=64, hidden_size=32)
    with pytest.raises(InputError, match="no attention blocks"):
        plan_conversion(config)


@pytest.mark.parametrize(
    ("attention", "choice", "want"),
    [
        (AttentionSizes(4, 2, 8), MambaChoice("heads"), (4, 8, 4, 8)),
        (AttentionSizes(4, 2, 8), MambaChoice("kv", 2, 16), (8, 8, 2, 16)),
        (AttentionSizes(4, 2, 8), MambaChoice("1"), (4, 8, 1, 8)),
        # 2 heads of 8 do not fill a hidden size of 32 and become 4; 4 heads of 16 are wide enough.
        (AttentionSizes(2, 1, 8), MambaChoice("kv"), (4, 8, 1, 8)),
        (AttentionSizes(4, 2, 16), MambaChoice(), (4, 16, 2, 16)),
    ],
)
def test_sizes_of_the_new_blocks(attention, choice, want):
    sizes = mamba_sizes(attention, 32, choice)
    assert (sizes.num_heads, sizes.head_dim, sizes.n_groups, sizes.d_state) == want


@pytest.mark.parametrize(
    ("config", "format_", "reason"),
    [
        (transformer(4), "granitemoehybrid", "first stock format"),
        (
            ModelSpec(
                [AttentionSizes(4, 2, 8), MLPSizes(48, bias=True)] * 4,
                vocab_size=64,
                hidden_size=32,
            ),
            "bamba",
            "first stock format",
        ),
        (transformer(4, AttentionSizes(4, 2, 8, qk_norm=True)), "hybridize", "query/key norm"),
        (
            transformer(4, AttentionSizes(4, 2, 8, sliding_window=9)),
            "hybridize",
            "the model has one of 9 tokens",
        ),
    ],
)
def test_auto_chooses_the_first_exact_format(config, format_, reason):
    plan = plan_conversion(config)
    assert plan.format.name == format_
    assert reason in plan.reason


def test_without_attention_auto_chooses_hybridize():
    plan = plan_conversion(transformer(4), attention="0")
    assert plan.format.name == "hybridize"
    assert "not granitemoehybrid: without attention, the format's code fails" in plan.reason
