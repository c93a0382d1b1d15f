"""The roofline against operations that torch counts, and against published figures."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hybridize
from hybridize.__main__ import main
from hybridize.checkpoints.published_models import SHAPES, find_shape
from hybridize.evals.bench.flops import decode_flops, prefill_flops
from hybridize.evals.bench.gpus import GPUS
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM
from tiny import VOCAB, tokens, write_stock

PAPER = {"gpu": "h100", "gpus": 8, "baseline": "llama-3.1-70b"}


def test_published_ratios_are_reproduced():
    """Published: 2.4 times (arXiv 2504.03624, figure 1), and about 1.2 times 47B against 56B."""
    llama, large, small = hybridize.predict(["nemotron-h-56b", "nemotron-h-47b"], **PAPER).rows
    assert llama.ratio is None
    assert large.ratio == pytest.approx(2.4, rel=0.1)
    assert small.throughput / large.throughput == pytest.approx(1.2, rel=0.1)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.6), ("nemotron-h-8b", 8.1),
     ("nemotron-h-47b", 46.8), ("nemotron-h-56b", 56.3)],
)  # fmt: skip
def test_published_models_have_the_published_number_of_parameters(name, billions):
    (row,) = hybridize.predict(name, gpu="h200", gpus=8).rows
    assert row.parameters == pytest.approx(billions * 1e9, rel=0.01)


ATTENTION = [AttentionSizes(4, 2, 8), MLPSizes(64)] * 2
MAMBA = [MambaSizes(4, 8, 2, 16), MLPSizes(64, "relu2", gated=False)] * 2


def build(blocks):
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = HybridConfig.from_blocks(
        blocks, vocab_size=VOCAB, hidden_size=32, rope_parameters=rope, attn_implementation="eager"
    )
    return HybridForCausalLM(config)  # torch counts no fused attention on a CPU


def counted(model, ids, **kwargs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=1, **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("blocks", [ATTENTION, MAMBA], ids=["attention", "mamba"])
def test_prefill_operations_equal_those_that_torch_counts(monkeypatch, blocks):
    length = 1024
    model = build(blocks).eval()
    # The eager kernel computes whole chunks of 64 tokens, which costs as much as half of 128.
    monkeypatch.setattr("hybridize.evals.bench.flops.CHUNK", 128)
    found = prefill_flops(model.config, length)
    # torch counts all pairs of tokens in attention, although causal attention needs half of them.
    square = sum(
        2 * length**2 * b.num_heads * b.head_dim for b in blocks if isinstance(b, AttentionSizes)
    )
    assert found + square == pytest.approx(counted(model, tokens(1, length)), rel=0.02)


def test_decoding_operations_equal_those_that_torch_counts():
    model = build(ATTENTION).eval()
    cache = model(tokens(1, 100), use_cache=True).cache
    assert decode_flops(model.config, 101) == pytest.approx(
        counted(model, tokens(1, 1), cache=cache), rel=0.01
    )


def test_a_bound_equals_its_formula():
    """Llama-3.1-8B, one sequence: (weights + cache) / bandwidth."""
    (row,) = hybridize.predict(
        "llama-3.1-8b", gpu="h100", prompt_len=1000, gen_len=2, batch_size=1
    ).rows
    kv = 32 * 2 * 8 * 128 * 2
    gpu = GPUS["h100"]
    assert row.step_seconds == pytest.approx((row.parameters * 2 + kv * 1001) / gpu.bandwidth)
    assert row.kv_bytes == kv * 1002
    assert row.largest_batch == (0.9 * gpu.memory - 2 * row.parameters) // (kv * 1002)
    assert row.throughput == pytest.approx(2 / (row.prefill_seconds + row.step_seconds))


def test_config_json_alone_is_enough(capsys, tmp_path):
    write_stock(tmp_path / "model", "bamba")
    (tmp_path / "model" / "model.safetensors").unlink()
    arguments = ["bench", str(tmp_path / "model"), "--predict", "rtx5090", "--preset", "paper"]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][0]["point"]["prompt_len"] == 65536
    assert len(printed["assumptions"]) == 5
    assert main([*arguments, "-o", str(tmp_path / "out.json")]) == 0
    assert "bounds, not measurements" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == printed
    config = tmp_path / "model" / "config.json"
    assert find_shape(config)[1].layout == find_shape(tmp_path / "model")[1].layout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama-3.1-70b", "--predict", "h100"], "only 0; change --gpus or --batch-size"),
        (["llama-4", "--predict", "h100"], "published shapes: llama-3.1-8b"),
        (["llama-3.1-8b", "--predict", "h100", "--batch-size", "999"], "999 sequences"),
    ],
)
def test_a_model_that_does_not_fit_is_a_one_line_error(capsys, arguments, words):
    capsys.readouterr()
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_a_prediction_imports_neither_torch_nor_transformers():
    program = (
        "import sys, hybridize\n"
        "hybridize.predict('llama-3.1-8b', gpu='h100')\n"
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_damaged_config_is_a_one_line_error(capsys, tmp_path):
    for content in ("{", "[]", "[" * 100_000, '{"model_type": "mystery"}'):
        (tmp_path / "config.json").write_text(content)
        assert main(["bench", str(tmp_path), "--predict", "h100"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_help_lists_every_model_and_gpu(capsys):
    main(["bench", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in (*SHAPES, *GPUS))
