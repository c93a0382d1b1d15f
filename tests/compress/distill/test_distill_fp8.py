"""Training in FP8: forward, backward, and that the quantized result is the trained model."""

import json

import pytest
import torch
from distilling import short_run, write_pair
from torch import nn

import hybridize
from hybridize.__main__ import main
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.fp8 import FP8TrainingLinear, fp8_layers
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.data.load_text import load_packed_dataset
from hybridize.errors import InputError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def make(rows: int, columns: int, scheme: str, bias: bool = True) -> FP8TrainingLinear:
    layer = nn.Linear(columns, rows, bias=bias)
    layer.__class__ = FP8TrainingLinear
    layer.scheme = SCHEMES[scheme]
    return layer


def rounded(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round to the nearest FP8 number in float64, without torch's conversion."""
    largest = torch.finfo(dtype).max
    mantissa_bits, min_exponent = (3, -6) if dtype == E4M3 else (2, -14)
    y = (x.double() / scale.double()).clamp(-largest, largest)
    exponent = torch.floor(torch.log2(y.abs().clamp(min=2.0 ** (min_exponent - mantissa_bits - 2))))
    spacing = 2.0 ** (exponent.clamp(min=min_exponent) - mantissa_bits)
    return (y / spacing).round() * spacing * scale.double()  # round() rounds halves to even


@pytest.mark.parametrize("scheme", ["fp8", "fp8-tensor"])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_equal_float64(scheme, bias):
    torch.manual_seed(3)
    layer = make(20, 12, scheme, bias)
    x = (torch.randn(2, 5, 12) * torch.rand(2, 5, 1)).requires_grad_()
    grad = torch.randn(2, 5, 20)
    y = layer(x)
    y.backward(grad)
    scale_per_row = scheme == "fp8"
    w_scale = SCHEMES[scheme].quantize(layer.weight.detach())[1].double()
    x_scale = (
        x.detach().abs().amax(-1, keepdim=True) if scale_per_row else x.detach().abs().max()
    ) / 448
    w = rounded(layer.weight.detach(), w_scale, E4M3)
    a = rounded(x.detach(), x_scale, E4M3).flatten(0, 1)
    g = rounded(grad, grad.abs().max() / torch.finfo(E5M2).max, E5M2).flatten(0, 1)
    expected = a @ w.T + (layer.bias.detach().double() if bias else 0)
    torch.testing.assert_close(y.detach().flatten(0, 1).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.flatten(0, 1).double(), g @ w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), g.T @ a, rtol=1e-5, atol=1e-5)
    if bias:
        torch.testing.assert_close(layer.bias.grad, grad.flatten(0, 1).sum(0))


def test_infinite_gradients_stay_infinite_and_zero_gradients_stay_zero():
    layer = make(4, 8, "fp8", bias=False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).backward(torch.full((3, 4), torch.inf))
    assert not layer.weight.grad.isfinite().any()
    layer.weight.grad = None
    layer(x).backward(torch.zeros(3, 4))
    assert (layer.weight.grad == 0).all()


def test_autocast_decides_the_output_dtype():
    layer = make(4, 8, "fp8")
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("fp8"))


def test_fp8_layers_are_those_that_quantize_chooses(pair, tmp_path):
    for keep in (None, 0, 1):
        done = hybridize.quantize(pair[1], tmp_path / "q", keep_bf16=keep, force=True)
        with torch.no_grad():
            model = hybridize.load_model(done.output)
        quantized = {name for name, m in model.named_modules() if type(m).__name__ == "FP8Linear"}
        assert set(fp8_layers(pair[1], "fp8", keep)) == quantized


@pytest.mark.parametrize("train", ["mixers", "all"])
def test_the_validation_loss_equals_that_of_the_quantized_result(pair, tmp_path, train):
    result = short_run(
        pair, tmp_path / "out", stages=("kl",), fp8="fp8", keep_bf16=0, train=train,
        learning_rates={"kl": 3e-3},
    )  # fmt: skip
    assert result.fp8_layers == len(fp8_layers(pair[1], "fp8", 0))
    assert result.shared == 0
    assert result.stages[-1].validation_after < result.stages[-1].validation_before
    options = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][-1]["options"]
    assert options["fp8"] == "fp8"
    hybridize.quantize(tmp_path / "out", tmp_path / "q", keep_bf16=0)
    start = hybridize.distill(
        tmp_path / "out", tmp_path / "again", teacher=pair[0], data=[str(pair[2])], stages=("kl",),
        seq_len=16, batch_size=4, validation_sequences=4, stage_tokens={"kl": 512}, device="cpu",
        fp8="fp8", keep_bf16=0, train=train,
    ).stages[0].validation_before  # fmt: skip
    assert start == pytest.approx(result.stages[-1].validation_after, rel=1e-5)
    assert start == pytest.approx(held_out_divergence(pair, tmp_path / "q"), rel=1e-3)


@torch.no_grad()
def held_out_divergence(pair, directory) -> float:
    """The KL divergence from the teacher on the validation sequences of a short run."""
    # The first documents of a source are held out.
    dataset = load_packed_dataset([str(pair[2])], model=pair[0], length=16, tokens=4 * 16)
    ids, seq_idx = dataset.sequences(range(4))
    teacher, student = (hybridize.load_model(d, dtype=torch.float32) for d in (pair[0], directory))
    p, q = (m(ids, seq_idx=seq_idx).logits.double().log_softmax(-1) for m in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_command_line_options(pair, tmp_path, capsys):
    teacher, student, text = map(str, pair)
    command = ["distill", student, "-o", str(tmp_path / "out"), "--teacher", teacher]
    command += ["--data", text, "--stages", "kl", "--seq-len", "16", "--batch-size", "4"]
    command += ["--validation-sequences", "4", "--kl-tokens", "128", "--json"]
    assert main([*command, "--fp8", "--keep-bf16", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["fp8_layers"] > 0
    assert main([*command, "--fp8", "int4", "--force"]) == 2
    assert "--fp8 int4: choose one of fp8, fp8-tensor, fp8-block" in capsys.readouterr().err
    assert main([*command, "--keep-bf16", "1", "--force"]) == 2
    assert "--keep-bf16 needs --fp8" in capsys.readouterr().err


def test_an_unknown_scheme_is_bad_input():
    with pytest.raises(InputError, match="`fp8=int4`: choose one of fp8, fp8-tensor, fp8-block"):
        DistillConfig(teacher="teacher", fp8="int4")
