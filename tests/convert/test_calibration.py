"""Calibrated blocks, compared with regressions and forward passes written out in the test."""

import pytest
import torch

import hybridize
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.conversion.block_fit import BlockFit
from hybridize.conversion.calibration import Calibrator
from hybridize.conversion.first_values import first_values
from hybridize.conversion.moments import Moments
from hybridize.conversion.plan import MambaChoice, mamba_sizes
from hybridize.data.packing import PackedDataset
from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.layers.mamba2 import Mamba2
from tiny import tokens, write_stock, write_tokenizer

SEQUENCES, LENGTH = 16, 48


@pytest.fixture
def dataset():
    seq_idx = (torch.arange(LENGTH) > 20).int().expand(SEQUENCES, -1).contiguous()
    return PackedDataset(tokens(SEQUENCES, LENGTH).int(), seq_idx)


def test_moments_that_overflow_are_an_error():
    moments = Moments()
    moments.add(torch.full((4, 2), 1e200, dtype=torch.float64), torch.ones(4, 1))
    with pytest.raises(HybridizeError, match="no replacement can be fitted"):
        moments.solve(0.1)


def test_moments_solve_the_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    moments = Moments()
    for part in range(0, 50, 7):
        moments.add(x[part : part + 7], y[part : part + 7])
    penalty = 0.3
    # The same regression with augmented data: one row with sqrt(ridge) per penalized coefficient.
    ridge = (penalty * x.square().sum(0).mean()).sqrt() * torch.eye(6, dtype=torch.float64)
    ones = torch.ones(50, 1, dtype=torch.float64)
    a = torch.cat([torch.cat([x, ones], 1), torch.nn.functional.pad(ridge, (0, 1))])
    b = torch.cat([y, torch.zeros(6, 3, dtype=torch.float64)])
    want = torch.linalg.lstsq(a, b).solution
    got = moments.solve(penalty)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    halves = Moments(), Moments()
    halves[0].add(x[:20], y[:20])
    halves[1].add(x[20:], y[20:])
    torch.testing.assert_close((halves[0] + halves[1]).solve(penalty), want, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(moments.power(), y.square().sum())
    error = torch.cat([x, ones], 1) @ got - y
    torch.testing.assert_close(moments.error(got), error.T @ error, rtol=1e-8, atol=1e-9)


CHOICES = [
    MambaChoice(),
    MambaChoice(groups="kv"),
    MambaChoice(groups="1", d_state=12),
    MambaChoice(expand=2),
    MambaChoice(groups="kv", expand=2, d_state=4),
    MambaChoice(expand=2, proj_bias=False),
]


NARROW = {"head_dim": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("changes", [{}, NARROW], ids=["full", "padded"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_reported_errors_match_a_forward_pass(tmp_path, dataset, choice, changes):
    write_stock(tmp_path / "in", "mistral", num_hidden_layers=2, **changes)
    model = load_model(tmp_path / "in", dtype=torch.float32)
    with CheckpointReader(tmp_path / "in") as reader:
        format_, config = read_config(reader)
        source = CheckpointTensors(reader, format_, config)
        calibrator = Calibrator(source, config, dataset)
        fitted = {}
        for index in (0, 2):
            sizes = mamba_sizes(config.blocks[index], config.hidden_size, choice)
            start = first_values(source, index, sizes, config, "attention", 0)
            fitted[index] = Mamba2(model.config, sizes, index)
            fitted[index].load_state_dict(calibrator.fit(index, sizes, start))
        with pytest.raises(ValueError, match="fit blocks in order"):
            calibrator.fit(0, sizes, start)
    assert [error.block for error in calibrator.errors] == [0, 2]
    ids, seq_idx = dataset.sequences([1, 9])  # the held-out sequences
    for error in calibrator.errors:
        got, want = outputs(model, error.block, fitted[error.block], ids, seq_idx)
        relative_error = (got - want).square().sum() / want.square().sum()
        assert error.after < error.before
        assert error.after < 0.9
        assert 0.5 * error.after < relative_error <= error.after


@torch.no_grad()
def outputs(model, index, new, ids, seq_idx):
    """The outputs of the new block and of the attention, for the attention's input."""
    seen = {}
    mixer = model.model.blocks[index].mixer
    hook = mixer.register_forward_hook(lambda _, x, y: seen.update(x=x, y=y))
    model.model(ids, seq_idx=seq_idx, use_cache=False)
    hook.remove()
    return new(*seen["x"]), seen["y"]


@torch.no_grad()
def test_without_biases_the_gate_weights_are_fitted_to_the_constant_one(tmp_path, dataset):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1)
    model = load_model(tmp_path / "in", dtype=torch.float32)
    with CheckpointReader(tmp_path / "in") as reader:
        format_, config = read_config(reader)
        source = CheckpointTensors(reader, format_, config)
        sizes = mamba_sizes(config.blocks[0], config.hidden_size, MambaChoice(proj_bias=False))
        start = first_values(source, 0, sizes, config, "attention", 0)
        values = Calibrator(source, config, dataset).fit(0, sizes, start)
    fitted = [i for i in range(SEQUENCES) if i % 8 != 1]
    x = model.model.blocks[0].norm(model.model.embed_tokens(dataset.sequences(fitted)[0]))
    x = x.flatten(0, 1).double()
    # Augmented data, as above.
    ridge = (1e-4 * x.square().sum(0).mean()).sqrt() * torch.eye(x.shape[1], dtype=torch.float64)
    ones = torch.cat([torch.ones(len(x), 1), torch.zeros(len(ridge), 1)]).double()
    want = torch.linalg.lstsq(torch.cat([x, ridge]), ones).solution
    assert not {"in_proj.bias", "out_proj.bias"} & values.keys()
    for weights in values["in_proj.weight"][: sizes.d_inner].double():
        torch.testing.assert_close(weights / 1.2784645, want[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_calibration_finds_a_head_that_looks_two_tokens_back(tmp_path, dataset):
    """First values that follow from the weights alone cannot do this; calibrated values can."""
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, num_attention_heads=1,
                num_key_value_heads=1, attention_bias=True)  # fmt: skip
    model = load_model(tmp_path / "in", dtype=torch.float32)
    attention = model.model.blocks[0].mixer
    # Queries and keys are constant; after RoPE they are equal at a distance of two tokens.
    half, angle = 16, 2 * model.model.rotary_emb.inv_freq
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.zero_()
        projection.bias.zero_()
    attention.k_proj.bias[:half] = 12.0
    attention.q_proj.bias[:half] = 12.0 * angle.cos()
    attention.q_proj.bias[half:] = -12.0 * angle.sin()
    from hybridize.checkpoints.save import save_model

    parameters = dict(model.named_parameters())
    save_model(parameters, tmp_path / "back", like=tmp_path / "in", record={"command": "test"})
    text = tmp_path / "data.txt"
    write_tokenizer(tmp_path / "back")
    letters = torch.randint(0, 26, (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text("".join("abcdefghijklmnopqrstuvwxyz"[n] for n in letters))
    result = hybridize.convert(
        tmp_path / "back", tmp_path / "out", keep=(), calibration=text, format="hybridize"
    )
    (error,) = result.errors
    assert error.before > 0.3
    assert error.after < 0.02


def test_convert_with_calibration_reduces_the_divergence_and_is_repeatable(tmp_path):
    write_stock(tmp_path / "in", "llama", max_position_embeddings=64)
    write_tokenizer(tmp_path / "in")
    options = {"calibration": "teacher", "calibration_tokens": 512, "keep": (1,)}
    result = hybridize.convert(tmp_path / "in", tmp_path / "out", **options)
    plain = hybridize.convert(tmp_path / "in", tmp_path / "plain", keep=(1,))
    assert plain.errors == ()
    assert [error.block for error in result.errors] == [0, 4, 6]
    # The fits need more than the teacher's forward pass, of which they run six of eight blocks.
    assert result.calibration.seconds > 0
    assert result.calibration.forwards > 6 / 8
    first = hybridize.convert(
        tmp_path / "in", tmp_path / "first", **(options | {"keep": (1, 2, 3)})
    )
    assert first.calibration.forwards is None  # no block comes before the only fitted one
    assert plain.calibration is None
    ids = tokens(4, 60)
    want, fitted, start = (
        load_model(tmp_path / name)(ids).logits.log_softmax(-1) for name in ("in", "out", "plain")
    )
    far, near = ((want.exp() * (want - got)).sum(-1).mean() for got in (start, fitted))
    assert near < far
    again = hybridize.convert(tmp_path / "in", tmp_path / "again", **options)
    assert again.errors == result.errors


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"calibration": "teacher", "init": "random"},
            "`calibration` fits blocks that start from attention",
        ),
        ({"calibration": "teacher", "calibration_tokens": 300}, "calibration needs 2 or more"),
        ({"calibration": "missing.txt"}, "`calibration=missing.txt`: no such file"),
        ({"select": "sensitivity", "keep": (1,)}, "leave out `keep`"),
        (
            {"select": "sensitivity", "init": "random"},
            "give `init=attention` or the directory of a hybrid",
        ),
        ({"ssm_bias": False}, "`ssm_bias=False` needs `calibration`"),
        ({"init": "nowhere"}, "`init=nowhere`: choose attention, random, or the directory"),
    ],
)
def test_bad_options_raise_input_error(tmp_path, options, complaint):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=2)
    write_tokenizer(tmp_path / "in")
    with pytest.raises(InputError, match=complaint):
        hybridize.convert(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_fit_that_is_no_better_leaves_the_first_values(tmp_path, dataset, monkeypatch):
    solve = BlockFit._solve_output

    def solve_badly(self):
        solve(self)
        self._mixer.out_proj.weight.fill_(100.0)
        return 1e6

    monkeypatch.setattr(BlockFit, "_solve_output", solve_badly)
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1)
    with CheckpointReader(tmp_path / "in") as reader:
        format_, config = read_config(reader)
        source = CheckpointTensors(reader, format_, config)
        sizes = mamba_sizes(config.blocks[0], config.hidden_size, MambaChoice())
        start = first_values(source, 0, sizes, config, "attention", 0)
        calibrator = Calibrator(source, config, dataset)
        values = calibrator.fit(0, sizes, start)
    (error,) = calibrator.errors
    assert error.after == error.before
    torch.testing.assert_close(values, start, rtol=0, atol=0)
