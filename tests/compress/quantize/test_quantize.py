"""`quantize`: its files, and the logits that transformers computes from them."""

import json

import pytest
import torch
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.__main__ import main
from hybridize.compress.quantize.schemes import SCHEMES
from hybridize.data.load_text import load_packed_dataset
from hybridize.errors import InputError
from hybridize.modeling.block import HybridBlock
from hybridize.modeling.layers.fp8_linear import FP8Linear
from tiny import tokens, write_stock, write_tokenizer

WIDE = {
    "llama": {"hidden_size": 128, "intermediate_size": 256},
    "granitemoehybrid": {
        "hidden_size": 128, "shared_intermediate_size": 128,
        "mamba_n_heads": 16, "mamba_d_head": 16,
    },
    "bamba": {
        "hidden_size": 128, "intermediate_size": 256, "mamba_n_heads": 16, "mamba_d_head": 16,
    },
    "nemotron_h": {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256,
                   "mamba_num_heads": 16, "mamba_head_dim": 8},
    "mamba2": {"hidden_size": 128, "num_heads": 32},
}  # fmt: skip


def source(tmp_path, architecture="granitemoehybrid", dtype=torch.float32, **changes):
    directory = tmp_path / "source"
    model = write_stock(directory, architecture, **{**WIDE[architecture], **changes})
    if dtype != torch.float32:
        model.to(dtype).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def calibration_for(scheme, tmp_path):
    """Return the options that give a static scheme its text; other schemes take none."""
    if not SCHEMES[scheme].quantization.static:
        return {}
    text = tmp_path / "calibration.txt"
    text.write_text("abc def " * 400)
    return {"calibration": text, "calibration_tokens": 512}


def nearest_fp8(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest of all 253 FP8 numbers in float64; ties go to the even one."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    codes = torch.arange(256) % 128
    numbers, codes = numbers[~numbers.isnan()], codes[~numbers.isnan()]
    distance = (x.double().reshape(-1, 1) - numbers).abs()
    odd = (codes % 2).double() * 1e-300
    near = distance == distance.amin(1, keepdim=True)
    return numbers[(~near * 1.0 + odd).argmin(1)].reshape(x.shape)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", ["granitemoehybrid", "nemotron_h"])
def test_weights_are_the_nearest_fp8_numbers_and_other_tensors_do_not_change(
    tmp_path, architecture, scheme
):
    directory = source(tmp_path, architecture)
    result = hybridize.quantize(
        directory, tmp_path / "out", scheme=scheme, keep_bf16=1, **calibration_for(scheme, tmp_path)
    )
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    quantized = [name for name in before if after[name].dtype == torch.float8_e4m3fn]
    assert len(quantized) > 2
    assert sum(before[name].numel() for name in quantized) == result.quantized
    for name in before:
        if name not in quantized:
            assert torch.equal(after[name], before[name])
            continue
        scale = after[name + "_scale"]
        if scheme == "fp8-block":
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            scale = scale[: len(before[name]), : before[name].shape[1]]
        want = nearest_fp8((before[name] / scale)[:40])
        assert torch.equal(after[name].double()[:40], want)
        # Scales are rounded up to bfloat16: the largest weight is near 448, or half of it.
        assert after[name].float().abs().max() >= (216 if scheme == "fp8" else 432)
    for word in ("embed", "lm_head", "norm", "conv", "A_log", ".D", "dt_bias"):
        assert not [name for name in quantized if word in name]


def test_the_scale_of_a_row_has_less_error_than_most():
    """Compares with the smallest possible scale, and with the bfloat16 scales up to twice that."""
    torch.manual_seed(5)
    weight = torch.randn(6, 40) * torch.logspace(-3, 3, 6)[:, None]
    values, scale = SCHEMES["fp8"].quantize(weight)
    assert torch.equal(values.double(), nearest_fp8(weight / scale))
    assert torch.equal(scale.bfloat16().float(), scale)
    for row, chosen in zip(weight, scale, strict=True):
        largest = float(row.abs().max()) / 448
        every = (largest * 2 ** torch.linspace(0, 1, 200)).bfloat16().float().unique()
        every = every[every >= largest]
        errors = torch.stack([error(row, one) for one in every])
        assert largest <= float(chosen) <= 2 * largest
        assert error(row, chosen) <= errors[0]
        assert error(row, chosen) <= errors.median()


def error(row: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rounded = nearest_fp8(row / scale) * scale.double()
    return (rounded - row.double()).square().sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", WIDE)
def test_transformers_opens_the_result_and_computes_the_same_logits(tmp_path, architecture, scheme):
    directory = source(tmp_path, architecture)
    hybridize.quantize(
        directory, tmp_path / "out", scheme=scheme, keep_bf16=1, **calibration_for(scheme, tmp_path)
    )
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = hybridize.load_model(tmp_path / "out")
    ids = tokens()
    with torch.no_grad():
        want, got = stock(ids).logits, ours(ids).logits
        exact = hybridize.load_model(directory)(ids).logits
    loss = (want - exact).abs().mean()
    assert loss > 0
    # Different rounding in float32 moves a few activations to the neighboring FP8 number.
    assert (got - want).abs().mean() < 0.1 * loss


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loaded_model_has_fp8_layers(tmp_path, scheme):
    directory = source(tmp_path, "llama", dtype=torch.bfloat16)
    hybridize.quantize(
        directory, tmp_path / "out", scheme=scheme, keep_bf16=1, **calibration_for(scheme, tmp_path)
    )
    model = hybridize.load_model(tmp_path / "out")
    layers = {name for name, layer in model.named_modules() if isinstance(layer, FP8Linear)}
    assert {name.split(".")[2] for name in layers} == set("123456")  # of 8 blocks
    assert model.dtype == torch.bfloat16
    model.to(torch.float32)
    layer = model.get_submodule(min(layers))
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer.weight_scale.dtype == torch.float32
    assert model(tokens()).logits.dtype == torch.float32


def test_ignore_patterns_match_the_names_of_transformers_and_vllm(tmp_path):
    directory = source(tmp_path)
    result = hybridize.quantize(directory, tmp_path / "out", keep_bf16=1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert tuple(config["ignore"]) == result.ignored
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def ignored(name):
        return any(match_name(name, pattern, fused) for pattern in config["ignore"])

    # Three layers: blocks 0 (Mamba-2) and 5 (MLP) are not quantized.
    for name in ("model.layers.0.mamba.in_proj", "model.layers.0.mixer.out_proj",
                 "model.layers.2.shared_mlp.input_linear", "lm_head"):  # fmt: skip
        assert ignored(name), name
    for name in ("model.layers.0.shared_mlp.input_linear", "model.layers.1.self_attn.qkv_proj",
                 "model.layers.2.mixer.in_proj", "model.layers.10.mixer.in_proj"):  # fmt: skip
        assert not ignored(name), name


def test_ignore_patterns_match_merged_layers(tmp_path):
    directory = source(tmp_path, "llama")
    hybridize.quantize(directory, tmp_path / "out", keep_bf16=2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    for layer, kept in ((0, True), (1, False), (2, False), (3, True)):
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj"):
            name = f"model.layers.{layer}.{part}"
            assert any(match_name(name, p, fused) for p in config["ignore"]) == kept, name


def test_layers_with_unsuitable_widths_are_skipped(tmp_path):
    directory = source(tmp_path, "llama", intermediate_size=172)
    result = hybridize.quantize(directory, tmp_path / "out", scheme="fp8-block", keep_bf16=0)
    assert len(result.skipped) == 4  # down_proj
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        got, want = hybridize.load_model(tmp_path / "out")(tokens()).logits, stock(tokens()).logits
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="not a multiple of 128"):
        hybridize.quantize(
            source(tmp_path / "narrow", "llama", hidden_size=32, intermediate_size=64),
            tmp_path / "none", scheme="fp8-block",
        )  # fmt: skip


def test_the_table_has_one_row_for_the_same_tensor_of_all_layers(tmp_path, capsys):
    directory = source(tmp_path, "llama", intermediate_size=172)
    command = ["quantize", str(directory), "-o", str(tmp_path / "out"), "--scheme", "fp8-block"]
    assert main([*command, "--keep-bf16", "0", "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "down_proj" in line]
    assert [row[:2] for row in rows] == [["model.layers.*.mlp.down_proj.weight", "4"]]


def test_static_scales_follow_from_the_largest_inputs(tmp_path):
    directory = source(tmp_path, "llama")
    text = tmp_path / "text.txt"
    text.write_text("abc def " * 400)
    hybridize.quantize(
        directory, tmp_path / "out", scheme="fp8-tensor", keep_bf16=1, calibration=text,
        calibration_tokens=512,
    )  # fmt: skip
    stock = AutoModelForCausalLM.from_pretrained(directory).eval()
    seen = {}
    for name, layer in stock.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, x, name=name: seen.__setitem__(name, x[0].abs().max())
            )
    dataset = load_packed_dataset([str(text)], model=directory, length=256, tokens=512)
    with torch.no_grad():
        stock(dataset.ids.long())  # one document, in sequences without padding
    after = load_file(tmp_path / "out" / "model.safetensors")
    scales = {n.removesuffix(".input_scale"): s for n, s in after.items() if "input_scale" in n}
    assert len(scales) == 3 * 4 + 3 * 3  # of 8 blocks, 3 of attention and 3 MLPs are quantized
    for name, scale in scales.items():
        want = seen[name] / 448
        assert want * (1 - 1e-5) <= scale.item() <= want * (1 + 2**-7)


def test_auto_keeps_the_blocks_that_cost_the_most(tmp_path):
    directory = source(tmp_path, "llama")
    path = directory / "model.safetensors"
    weights = load_file(path)
    # One row is a million times larger: a scale per tensor leaves no digits for the other rows.
    weights["model.layers.2.mlp.up_proj.weight"][0] *= 1e6
    weights["model.layers.2.mlp.down_proj.weight"][:, 0] /= 1e6
    save_file(weights, path, {"format": "pt"})
    result = hybridize.quantize(
        directory, tmp_path / "out", scheme="fp8-tensor", keep_bf16="auto:1",
        calibration_tokens=512,
    )  # fmt: skip
    assert [block.block for block in result.kept] == [5]
    assert set(result.sensitivity) == set(range(8))
    assert result.sensitivity[5] == max(result.sensitivity.values())
    assert "nats" in result.kept[0].reason


def test_auto_runs_only_the_blocks_behind_the_quantized_one(tmp_path, monkeypatch):
    """Otherwise the time would be twice as long."""
    directory = source(tmp_path, "llama")
    text = tmp_path / "text.txt"
    text.write_text("abc def " * 400)
    runs, forward = [], HybridBlock.forward
    monkeypatch.setattr(
        HybridBlock, "forward", lambda self, *args: runs.append(self) or forward(self, *args)
    )
    hybridize.quantize(
        directory, tmp_path / "out", keep_bf16="auto:1", calibration=text, calibration_tokens=512
    )
    blocks = 8
    assert len(runs) <= 2 * blocks + blocks * (blocks + 1) // 2  # one batch of text


def test_shards_verification_inspection_and_provenance(tmp_path):
    directory = source(tmp_path, dtype=torch.bfloat16)
    hybridize.quantize(directory, tmp_path / "out", keep_bf16=0, max_shard_size=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert hybridize.verify(tmp_path / "out").problems == ()
    found = hybridize.inspect(tmp_path / "out")
    assert found.quantization == "fp8"
    assert found.dtypes["float8_e4m3fn"] > found.dtypes["bfloat16"]
    assert [record["command"] for record in found.records] == ["quantize"]
    assert hybridize.inspect(directory).quantization == ""
    (tmp_path / "out" / "hybridize.json").unlink()  # as if another program had quantized it
    described = "FP8, weight scales per row, dynamic input scales per row"
    assert hybridize.inspect(tmp_path / "out").quantization == described


def test_linear_layers_shrink_to_half_their_size(tmp_path):
    directory = source(tmp_path, "llama", torch.bfloat16, hidden_size=512, intermediate_size=1024)
    result = hybridize.quantize(directory, tmp_path / "out", keep_bf16=0, dry_run=True)
    assert result.bytes_after <= 0.55 * result.bytes_before
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_scales_are_detected(tmp_path):
    directory = source(tmp_path)
    hybridize.quantize(directory, tmp_path / "out", keep_bf16=1)
    path = tmp_path / "out" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("weight_scale"))
    save_file({k: v for k, v in weights.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"weight_scale' is missing"):
        hybridize.load_model(tmp_path / "out")
    save_file(weights | {name: weights[name][:-1].clone()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="weight_scale' has shape"):
        hybridize.load_model(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has dtype float8_e4m3fn"):
        hybridize.load_model(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [{"quant_method": "fp8"}, {"format": "pack-quantized"}, {"config_groups": {}},
     {"config_groups": {"a": 1}}, {"config_groups": None}],
)  # fmt: skip
def test_other_quantizations_are_rejected(tmp_path, change):
    directory = source(tmp_path)
    hybridize.quantize(directory, tmp_path / "out", keep_bf16=1)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    for opened in (hybridize.load_model, hybridize.inspect, hybridize.verify):
        with pytest.raises(InputError, match="quantization_config"):
            opened(tmp_path / "out")
