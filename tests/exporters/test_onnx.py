"""ONNX: the traceable blocks against the model, and the written graphs against both."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from hybridize.__main__ import main
from hybridize.exporters.onnx import traceable_blocks as blocks
from hybridize.exporters.onnx.export import write_other_files
from hybridize.exporters.onnx.graph_files import trace_prefill
from hybridize.exporters.onnx.graphs import Graph, state_specs
from hybridize.kernels.reference.ssd_scan import ssd_scan
from hybrids import LAYOUTS, build
from tiny import tokens, write_stock, write_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_generate.py"


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("length", [1, 3, 64, 65, 150])
def test_traceable_blocks_equal_the_model(name, length):
    model = build(LAYOUTS[name])
    graph = Graph(model)
    ids = tokens(2, length)
    expected = model(ids, use_cache=True)
    logits, *states = graph(ids)
    specs = state_specs(model.config)
    for _ in range(5):
        # Rotary angles are float32 in the model.
        torch.testing.assert_close(logits, expected.logits[:, -1], atol=2e-5, rtol=2e-5)
        sizes = {"batch": 2, "past": states[0].shape[2] if "key" in specs[0].name else 0}
        for spec, state in zip(specs, states, strict=True):
            if "past" in spec.shape:
                sizes["past"] = state.shape[2]
            assert state.shape == tuple(sizes.get(n, n) for n in spec.shape)
        ids = tokens(2, 1, seed=int(logits.sum()) % 97)
        expected = model(ids, cache=expected.cache, use_cache=True)
        logits, *states = graph(ids, *states)


@pytest.mark.parametrize("length", [1, 63, 64, 129])
def test_scan_equals_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, B, C = randn(2, length, 3, 5), randn(2, length, 3, 7), randn(2, length, 3, 7)
    dt = torch.nn.functional.softplus(randn(2, length, 3) * 3)
    A = -torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    raw = dt.expm1().log()  # the inverse of softplus
    expected, last = ssd_scan(x, raw, A, B, C)
    y, state = blocks.scan(x * dt[..., None], dt * A, B, C)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(state, last, atol=1e-10, rtol=1e-8)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx") / "llama"
    write_stock(directory, "llama", num_hidden_layers=2, eos_token_id=None)
    write_tokenizer(directory)
    output = directory.parent / "hybrid"
    assert main(["convert", str(directory), "-o", str(output), "--keep", "1", "--quiet"]) == 0
    return output


@pytest.fixture(scope="module")
def exported(hybrid):
    pytest.importorskip("onnxscript", reason="needs hybridize[onnx]")
    pytest.importorskip("onnxruntime", reason="needs hybridize[onnx]")
    output = hybrid.parent / "exported"
    assert main(["export", str(hybrid), "-o", str(output), "--quiet"]) == 0
    return output


def test_graphs_share_one_file_of_weights(exported, hybrid):
    names = {path.name for path in exported.iterdir()}
    assert {"prefill.onnx", "decode.onnx", "weights.data", "onnx.json", "tokenizer.json"} <= names
    weights = (exported / "weights.data").stat().st_size
    stored = (hybrid / "model.safetensors").stat().st_size
    assert 0.8 * stored < weights < 1.6 * stored + 60 * 4096  # tensors start on page boundaries
    assert not list(exported.parent.glob("exported.*"))


def test_a_traced_graph_has_no_copy_of_the_weights():
    pytest.importorskip("onnxscript", reason="needs hybridize[onnx]")
    model = build(LAYOUTS["attention only"], torch.float32)
    prefill = trace_prefill(model, tuple(state_specs(model.config)))
    traced = [value.const_value for value in prefill.graph.initializers.values()]
    addresses = {tensor.numpy().ctypes.data for tensor in traced}
    large = [p for p in model.parameters() if p.nbytes >= 1024]
    assert large
    assert {p.data_ptr() for p in large} <= addresses
    assert sum(tensor.nbytes for tensor in traced) < 1.5 * sum(p.nbytes for p in large)


def test_the_description_has_all_tokens_that_end_a_text(tmp_path):
    """generation_config.json of a chat model has more of them than config.json."""
    model = build(LAYOUTS["attention only"], torch.float32, eos_token_id=3)
    for ids in (3, [3, 7]):
        model.generation_config = GenerationConfig(eos_token_id=ids)
        write_other_files(model, (), tmp_path, tmp_path)
        assert json.loads((tmp_path / "onnx.json").read_text())["eos_token_id"] == ids
    model.generation_config = GenerationConfig()
    write_other_files(model, (), tmp_path, tmp_path)
    assert json.loads((tmp_path / "onnx.json").read_text())["eos_token_id"] == 3


def test_the_files_that_belong_to_a_checkpoint_go_along(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    names = ("tekken.json", "LICENSE", "chat_template.json", "additional_chat_templates/x.jinja")
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    output.mkdir()
    write_other_files(build(LAYOUTS["attention only"], torch.float32), (), source, output)
    assert [(output / name).read_text() for name in names] == list(names)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 17), (1, 200)])
def test_onnxruntime_and_stock_transformers_agree(exported, hybrid, batch, length):
    import onnxruntime
    from transformers import AutoModelForCausalLM

    prefill, decode = (
        onnxruntime.InferenceSession(exported / f"{name}.onnx") for name in ("prefill", "decode")
    )
    stock = AutoModelForCausalLM.from_pretrained(hybrid).eval()
    ids = tokens(batch, length)
    logits, *states = prefill.run(None, {"input_ids": ids.numpy()})
    names = [each.name for each in decode.get_inputs()][1:]
    for _ in range(4):
        expected = stock(ids).logits[:, -1]
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
        token = expected.argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
        past = dict(zip(names, states, strict=True))
        logits, *states = decode.run(None, {"input_ids": token.numpy(), **past})


def test_the_example_generates_the_same_text_as_hybridize_generate(capsys, exported, hybrid):
    prompt = "Hello you"
    capsys.readouterr()
    assert main(["generate", str(hybrid), "-p", prompt, "--max-new-tokens", "12"]) == 0
    expected = capsys.readouterr().out
    command = [sys.executable, EXAMPLE, exported, prompt, "--max-new-tokens", "12"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == expected, done.stderr


def test_wrong_graphs_are_not_written(capsys, monkeypatch, hybrid, tmp_path, exported):
    from hybridize.exporters.onnx import export

    def save_wrong_weights(_prefill, _decode, folder):
        for name in ("prefill.onnx", "decode.onnx"):
            shutil.copy(exported / name, folder)
        weights = np.fromfile(exported / "weights.data", dtype=np.float32)
        (weights * np.float32(1.01)).tofile(folder / "weights.data")

    # Tracing takes long, so the graphs are those of the fixture.
    monkeypatch.setattr(export, "trace_prefill", lambda *_: None)
    monkeypatch.setattr(export, "trace_decode", lambda *_: None)
    monkeypatch.setattr(export, "save_with_shared_weights", save_wrong_weights)
    assert main(["export", str(hybrid), "-o", str(tmp_path / "out")]) == 1
    assert "of onnxruntime and torch differ by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(capsys, hybrid, tmp_path):
    capsys.readouterr()
    assert main(["export", str(hybrid), "-o", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [state["name"] for state in printed["states"]] == [
        "window.0", "state.0", "key.2", "value.2",
    ]  # fmt: skip
    assert printed["dry_run"]
    assert printed["difference"] is None
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_exported_give_one_line(capsys, hybrid, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["export", str(hybrid), "-o", str(tmp_path / "out")]) == 2
    assert "--force" in capsys.readouterr().err
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    write_stock(tmp_path / "dynamic", "llama", num_hidden_layers=1, rope_parameters=rope)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "dynamic"), "-o", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert "its RoPE type is 'dynamic'; ONNX graphs can have" in err
    assert err.count("\n") == 1
