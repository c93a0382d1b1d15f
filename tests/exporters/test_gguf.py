"""GGUF: files against an independent implementation that reads them, and against llama.cpp."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hybridize import load_model
from hybridize.__main__ import main
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybrids import build
from tiny import tokens, write_stock, write_tokenizer

pytest.importorskip("gguf", reason="needs hybridize[gguf]")
from gguf_reference import Reference

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
STOCK = {
    "granite": ("granitemoehybrid", {}),
    "without RoPE": ("granitemoehybrid", {"position_embedding_type": None}),
    "llama3": ("granitemoehybrid", {"rope_parameters": LLAMA3}),
    "yarn": ("granitemoehybrid", {"rope_parameters": YARN}),
    "linear": ("granitemoehybrid", {"rope_parameters": LINEAR, "attention_bias": True}),
    "tied, one group per head": (
        "granitemoehybrid",
        {"tie_word_embeddings": True, "mamba_n_groups": 8, "mamba_d_conv": 3},
    ),
    "no convolution bias": ("granitemoehybrid", {"mamba_conv_bias": False, "mamba_n_groups": 1}),
    "partial RoPE, MLP biases": ("bamba", {"mamba_n_groups": 2}),
}


def export(source, output, *options):
    words = ["export", str(source), "-o", str(output), "--to", "gguf", "--tokenizer", "none"]
    return main([*words, "--quiet", *options])


@pytest.fixture(scope="module", params=STOCK)
def pair(request, tmp_path_factory):
    """A checkpoint and its file, in float32."""
    directory = tmp_path_factory.mktemp("gguf")
    architecture, changes = STOCK[request.param]
    write_stock(directory / "model", architecture, **changes)
    assert export(directory / "model", directory / "model.gguf") == 0
    return directory / "model", directory / "model.gguf"


@torch.no_grad()
def test_the_file_has_the_logits_of_the_model(pair):
    source, file = pair
    ids = tokens(1, 90)
    expected = load_model(source, dtype=torch.float64)(ids).logits[0]
    found = torch.from_numpy(Reference(file).logits(ids[0].tolist()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)  # angles are float32


def test_tensor_names_belong_to_the_architecture(pair):
    from gguf import MODEL_ARCH, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

    kinds = {*MODEL_TENSORS[MODEL_ARCH.GRANITE_HYBRID], MODEL_TENSOR.ROPE_FREQS}
    known = {TENSOR_NAMES[kind].format(bid=bid) for kind in kinds for bid in range(3)}
    found = {
        name.removesuffix(".weight").removesuffix(".bias") for name in Reference(pair[1]).kinds
    }
    assert found <= known


@torch.no_grad()
def test_sizes_that_only_the_hybridize_format_stores(tmp_path):
    attention = AttentionSizes(3, 1, 12, qkv_bias=True, out_bias=True, scale=0.5)
    mamba = MambaSizes(4, 16, 4, 8, conv_kernel=2)
    blocks = [attention, MLPSizes(40), mamba, MLPSizes(40), attention, MLPSizes(40)]
    rope = {"rope_type": "default", "rope_theta": 500.0}
    model = build(blocks, rope_parameters=rope, logits_scaling=2.0)
    model.float().save_pretrained(tmp_path / "own")
    assert export(tmp_path / "own", tmp_path / "own.gguf") == 0
    ids = tokens(1, 50)
    found = Reference(tmp_path / "own.gguf").logits(ids[0].tolist())
    np.testing.assert_allclose(found, model.double()(ids).logits[0], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_a_converted_transformer_can_be_exported(tmp_path):
    write_stock(tmp_path / "llama", "llama", num_hidden_layers=2, rope_parameters=LLAMA3)
    write_tokenizer(tmp_path / "llama")
    words = ["convert", str(tmp_path / "llama"), "-o", str(tmp_path / "hybrid"), "--keep", "1"]
    words += ["--ssm-expand", "2", "--no-ssm-bias", "--calibration", "teacher", "--quiet"]
    assert main([*words, "--calibration-tokens", "1024"]) == 0
    assert export(tmp_path / "hybrid", tmp_path / "out.gguf") == 0
    ids = tokens(1, 40)
    found = Reference(tmp_path / "out.gguf").logits(ids[0].tolist())
    expected = load_model(tmp_path / "hybrid", dtype=torch.float64)(ids).logits[0]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


def in_llama_cpp(file, **options):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    # Keys and values in float32 (type 0): by default they are rounded to float16.
    return llama_cpp.Llama(
        str(file), n_ctx=256, n_batch=256, n_threads=1, logits_all=True, type_k=0, type_v=0,
        flash_attn=False, verbose=False, **options,
    )  # fmt: skip


@torch.no_grad()
def test_llama_cpp_computes_the_same_logits_and_greedy_tokens(pair):
    source, file = pair
    llama = in_llama_cpp(file)
    ids = tokens(1, 90)[0].tolist()
    llama.eval(ids)
    for _ in range(30):
        ids.append(int(llama.scores[len(ids) - 1].argmax()))
        llama.eval(ids[-1:])
    found = np.array(llama.scores[: len(ids)])
    llama.close()
    expected = load_model(source, dtype=torch.float32)(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (expected.argmax(-1)[89:-1] == ids[90:]).all()


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"), [("bfloat16", "BF16", 0.5), ("float16", "F16", 0.05)]
)
def test_only_matrices_are_stored_in_16_bits(tmp_path, dtype, kind, bound):
    write_stock(tmp_path / "model", "granitemoehybrid")
    assert export(tmp_path / "model", tmp_path / "exact.gguf") == 0
    assert export(tmp_path / "model", tmp_path / "small.gguf", "--dtype", dtype) == 0
    exact, small = (Reference(tmp_path / f"{name}.gguf") for name in ("exact", "small"))
    matrices = {name for name, found in small.kinds.items() if found == kind}
    assert set(small.kinds.values()) == {kind, "F32"}
    assert all(exact.tensors[name].ndim == 2 for name in matrices)
    single = {"ssm_a", "ssm_d", "ssm_conv1d.weight", "ssm_norm.weight"}
    for name, values in exact.tensors.items():
        in_full = values.ndim == 1 or name.split(".", 2)[-1] in single
        assert in_full == (name not in matrices)
        if in_full:
            assert (small.tensors[name] == values).all()
    ids = tokens(1, 40)[0].tolist()
    difference = np.abs(exact.logits(ids) - small.logits(ids)).max()
    assert 0 < difference < bound


def test_float16_overflow_is_an_error(tmp_path, capsys):
    model = write_stock(tmp_path / "model", "granitemoehybrid")
    with torch.no_grad():
        model.model.layers[0].mamba.in_proj.weight[3, 4] = 7e4
    model.save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out.gguf", "--dtype", "float16") == 2
    assert "'blk.0.ssm_in.weight' has values beyond 65504" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("granitemoehybrid", {"mamba_d_head": 4, "mamba_expand": 1}, "--ssm-expand 2"),
        ("granitemoehybrid", {"mamba_proj_bias": True}, "--no-ssm-bias"),
        ("llama", {}, "own converter"),
        ("mamba2", {}, "a mixer and an MLP"),
        ("nemotron_h", {}, "a mixer and an MLP"),
        ("qwen3", {}, "query/key norms"),
        ("mistral", {"sliding_window": 16}, "sliding window of 16"),
        (
            "granitemoehybrid",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic'",
        ),
    ],
)
def test_unsupported_models_give_one_line(tmp_path, capsys, architecture, changes, said):
    write_stock(tmp_path / "model", architecture, **changes)
    capsys.readouterr()
    assert export(tmp_path / "model", tmp_path / "out.gguf") == 2
    err = capsys.readouterr().err
    assert "llama.cpp does not support it" in err
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_error_names_all_unsupported_features(tmp_path, capsys):
    mamba = MambaSizes(4, 16, 2, 8, dt_max=0.5)
    build([mamba, MLPSizes(40, "gelu")]).save_pretrained(tmp_path / "own")
    capsys.readouterr()
    assert export(tmp_path / "own", tmp_path / "out.gguf") == 2
    err = capsys.readouterr().err
    assert all(said in err for said in ("gated with gelu", "limited to", "--attention 1"))


def test_dry_run_json_and_output_path(tmp_path, capsys):
    write_stock(tmp_path / "model", "granitemoehybrid")
    out = tmp_path / "out.gguf"
    capsys.readouterr()
    assert export(tmp_path / "model", out, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"]
    assert not out.exists()
    out.write_text("mine")
    assert export(tmp_path / "model", out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert export(tmp_path / "model", out, "--force", "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written == planned | {"dry_run": False}
    assert len(Reference(out).tensors) == written["tensors"]
    assert written["nbytes"] < out.stat().st_size < written["nbytes"] + 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]
    assert export(tmp_path / "model", tmp_path) == 2
    assert "is a directory" in capsys.readouterr().err
    assert export(tmp_path / "model", tmp_path / "no" / "out.gguf") == 2
    assert "make it first" in capsys.readouterr().err


def test_gguf_options_are_rejected_for_onnx(tmp_path, capsys):
    write_stock(tmp_path / "model", "llama")
    write_tokenizer(tmp_path / "model")
    for option, value in (("--dtype", "float16"), ("--tokenizer", "none")):
        words = ["export", str(tmp_path / "model"), "-o", str(tmp_path / "out"), option, value]
        assert main(words) == 2
        assert f"{option} {value}" in capsys.readouterr().err


def test_a_full_disk_leaves_no_file(tmp_path, capsys, monkeypatch):
    from gguf import GGUFWriter

    write_stock(tmp_path / "model", "granitemoehybrid")
    whole = GGUFWriter.write_tensor_data
    written = []

    def full(self, tensor):
        written.append(tensor)
        if len(written) == 5:
            raise OSError(28, os.strerror(28))
        whole(self, tensor)

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    assert export(tmp_path / "model", tmp_path / "out.gguf") == 1
    assert "out.gguf: No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, sys
from gguf import GGUFWriter
from hybridize.__main__ import main
whole, written = GGUFWriter.write_tensor_data, []
def stop(self, tensor):
    written.append(tensor)
    if len(written) == 5:
        os.kill(os.getpid(), 9)
    whole(self, tensor)
GGUFWriter.write_tensor_data = stop
main(sys.argv[1:])
"""


def test_the_next_export_removes_what_a_killed_one_left(tmp_path, capsys):
    write_stock(tmp_path / "model", "granitemoehybrid")
    out = tmp_path / "out.gguf"
    words = ["export", str(tmp_path / "model"), "-o", str(out), "--to", "gguf"]
    words += ["--tokenizer", "none"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert done.returncode == -9
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the model, and the killed run's directory
    capsys.readouterr()
    assert main(words) == 0
    assert "left by an interrupted run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]
