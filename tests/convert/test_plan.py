"""Which attention blocks a conversion keeps, and what it makes of the others."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.conversion.plan import MambaChoice, keep_uniform, mamba_sizes, plan_conversion
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes


def transformer(layers: int, attention: AttentionSizes | None = None, **fields) -> HybridConfig:
    blocks = [attention or AttentionSizes(4, 2, 8), MLPSizes(48)] * layers
    fields = {"vocab_size": 64, "hidden_size": 32, "max_position_embeddings": 256} | fields
    return HybridConfig.from_blocks(blocks, **fields)


@given(st.integers(1, 200), st.data())
def test_uniform_is_even_and_avoids_the_ends(count, data):
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
def test_uniform_by_example(count, keep, want):
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
def test_layouts(options, layout):
    plan = plan_conversion(transformer(8), **options)
    assert plan.layout.pattern == plan.target.layout == layout
    assert len(plan.kept) == layout.count("*")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attention": "9"}, "--attention 9: .* 0 to 8"),
        ({"attention": "-1"}, "--attention -1"),
        ({"attention": "101%"}, "--attention 101%"),
        ({"attention": "half"}, "--attention half"),
        ({"attention": "nan%"}, "--attention nan%"),
        ({"keep": (99,)}, "--keep 99: .* 8, 0 to 7"),
        ({"keep": (-1,)}, "--keep -1"),
        ({"pattern": "*-M-"}, "4 blocks and the model 16"),
        ({"pattern": "*-M-*-M-*-M-*-Mx"}, "letter 'x'"),
        ({"pattern": "-*M-*-M-*-M-*-M-"}, "block 0 is '\\*' in the model and '-'"),
        ({"keep": (1,), "attention": "2"}, "--attention and --keep exclude"),
        ({"mamba": MambaChoice(groups="3")}, "--ssm-groups 3: .* 1, 2, 4"),
        ({"mamba": MambaChoice(groups="many")}, "--ssm-groups many"),
        ({"format_name": "mamba2"}, "--format mamba2: .* Mamba-2 blocks only"),
        ({"format_name": "granitemoehybrid", "attention": "0"}, "at least one attention block"),
    ],
)
def test_choices_that_cannot_be_say_why(options, reason):
    with pytest.raises(InputError, match=reason):
        plan_conversion(transformer(8), **options)


def test_a_model_without_attention_has_nothing_to_convert():
    config = HybridConfig.from_blocks([MambaSizes(4, 8, 4, 8)], vocab_size=64, hidden_size=32)
    with pytest.raises(InputError, match="no attention blocks"):
        plan_conversion(config)


@pytest.mark.parametrize(
    ("attention", "choice", "want"),
    [
        (AttentionSizes(4, 2, 8), MambaChoice(), (4, 8, 4, 8)),
        (AttentionSizes(4, 2, 8), MambaChoice("kv", 2, 16), (8, 8, 2, 16)),
        (AttentionSizes(4, 2, 8), MambaChoice("1"), (4, 8, 1, 8)),
        # Heads that do not fill the hidden size are filled up: 2 to 4, and 4 × 16 stays as it is.
        (AttentionSizes(2, 1, 8), MambaChoice("kv"), (4, 8, 1, 8)),
        (AttentionSizes(4, 2, 16), MambaChoice(), (4, 16, 4, 16)),
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
            HybridConfig.from_blocks(
                [AttentionSizes(4, 2, 8), MLPSizes(48, bias=True)] * 4,
                vocab_size=64,
                hidden_size=32,
            ),
            "bamba",
            "first stock format",
        ),
        (transformer(4, AttentionSizes(4, 2, 8, qk_norm=True)), "hybridize", "query/key norm"),
        (transformer(4, AttentionSizes(4, 2, 8, sliding_window=9)), "hybridize", "window of 9"),
    ],
)
def test_auto_takes_the_first_format_that_is_exact(config, format_, reason):
    plan = plan_conversion(config)
    assert plan.format.name == format_
    assert reason in plan.reason


def test_without_attention_it_is_hybridizes_own_format():
    plan = plan_conversion(transformer(4), attention="0")
    assert plan.format.name == "hybridize"
    assert "not granitemoehybrid: stock code fails" in plan.reason
