"""`convert`, `inspect`, `generate` and `verify` from the command line, on a tiny checkpoint."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridize.__main__ import main
from tiny import VOCAB, write_stock, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Llama with a tokenizer. Treat it as read-only: the module shares it."""
    directory = tmp_path_factory.mktemp("commands") / "llama"
    write_stock(directory, "llama", eos_token_id=None)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def hybrid(model) -> Path:
    """The model with one attention block left."""
    output = model.parent / "hybrid"
    assert main(["convert", str(model), "-o", str(output), "--keep", "2", "--quiet"]) == 0
    return output


@pytest.fixture
def run(capsys):
    """Run a command that succeeds; return its stdout and stderr."""

    def call(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr()

    return call


def rows(out: str) -> dict[str, list[str]]:
    """The rows of printed tables, by their first cell."""
    split = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in split}


def parameters(directory: Path) -> int:
    tensors = load_file(directory / "model.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())


# convert


def test_convert_prints_tables_to_stdout_and_messages_to_stderr(run, model, tmp_path):
    out, err = run("convert", model, "-o", tmp_path / "out", "--keep", "2")
    table = rows(out)
    before, after = parameters(model), parameters(tmp_path / "out")
    assert table["layout"] == ["*-*-*-*-", "M-M-*-M-"]
    assert table["attention"] == ["4", "1"]
    assert table["Mamba-2"] == ["0", "3"]
    assert table["parameters"] == [f"{before:,}", f"{after:,} ({after / before - 1:+.1%})"]
    assert table["weights"] == [f"{4 * count / 1024:.1f} KiB" for count in (before, after)]
    assert table["cache at 32k tokens"][0] == "16.0 MiB"  # 4 × 2 × 2 heads × 8 × 32k × 4 bytes
    assert table["kept"] == ["1", "2"]
    assert table["swapped"] == ["3", "0,1,3"]
    reason, written = err.splitlines()
    assert reason.startswith("format: granitemoehybrid: ")
    assert written == f"written: {tmp_path / 'out'} (1 weight file)"


@pytest.mark.parametrize("flags", [["--quiet"], ["--quiet", "--dry-run"]], ids=str)
def test_quiet_prints_nothing_on_stderr(run, model, tmp_path, flags):
    out, err = run("convert", model, "-o", tmp_path / "out", *flags)
    assert err == ""
    assert rows(out)["layout"] == ["*-*-*-*-", "M-M-*-M-"]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["real", "dry"])
def test_convert_prints_only_json_on_stdout(run, model, tmp_path, flags):
    output = tmp_path / "out"
    out, _ = run("convert", model, "-o", output, "--attention", "50%", "--json", *flags)
    result = json.loads(out)
    assert result["source"] == str(model)
    assert result["output"] == str(output)
    assert (result["source_format"], result["format"]) == ("llama", "granitemoehybrid")
    assert len(result["kept"]) == len(result["swapped"]) == 2
    assert sorted(result["kept"] + result["swapped"]) == [0, 1, 2, 3]
    assert result["dry_run"] == bool(flags)
    assert result["files"] == (0 if flags else 1)
    assert output.exists() == (not flags)
    if not flags:
        assert result["parameters_after"] == parameters(output)
        assert result["bytes_before"] == 4 * parameters(model)
        assert result["bytes_after"] == 4 * parameters(output)


def test_a_dry_run_writes_nothing_and_says_so(run, model, tmp_path):
    _, err = run("convert", model, "-o", tmp_path / "new" / "out", "--dry-run")
    assert err.splitlines()[-1] == f"dry run: {tmp_path / 'new' / 'out'} was not written"
    assert list(tmp_path.iterdir()) == []


def test_every_option_of_convert_is_recorded(run, model, tmp_path):
    options = (
        "--pattern M-M-*-M- --select uniform --init random --ssm-groups kv --ssm-expand 2 "
        "--no-ssm-bias "
        "--d-state 12 --format hybridize --dtype bfloat16 --max-shard-size 20KB --seed 7 "
        "--calibration-tokens 4096 --select-tokens 512"
    )
    run("convert", model, "-o", tmp_path / "out", *options.split(), "--allow-nonfinite")
    (record,) = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"]
    assert record["seed"] == 7
    assert record["options"] == {
        "attention": None,
        "keep": None,
        "pattern": "M-M-*-M-",
        "select": "uniform",
        "select_tokens": 512,
        "init": "random",
        "calibration": None,
        "calibration_tokens": 4096,
        "ssm_groups": "kv",
        "ssm_expand": 2,
        "ssm_bias": False,
        "d_state": 12,
        "format": "hybridize",
        "dtype": "bfloat16",
        "max_shard_size": 20_000,
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    mamba = config["mamba"]
    assert (mamba["num_heads"], mamba["n_groups"], mamba["d_state"]) == (8, 2, 12)
    assert (config["model_type"], config["layout"]) == ("hybridize", "M-M-*-M-")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert {t.dtype for file in files for t in load_file(file).values()} == {torch.bfloat16}


# inspect

HIDDEN, MLP_WIDTH, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 64, 4, 2, 8, 4  # as in tiny.py


def test_inspect_counts_a_transformer(run, model):
    out, _ = run("inspect", model, "--json")
    found = json.loads(out)
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    attention = LAYERS * HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    mlp = LAYERS * 3 * HIDDEN * MLP_WIDTH
    norms = (2 * LAYERS + 1) * HIDDEN
    assert {name: (kind["count"], kind["parameters"]) for name, kind in kinds.items()} == {
        "attention": (LAYERS, attention),
        "MLP": (LAYERS, mlp),
        "embeddings": (2, 2 * VOCAB * HIDDEN),
        "norms": (2 * LAYERS + 1, norms),
    }
    assert found["parameters"] == attention + mlp + norms + 2 * VOCAB * HIDDEN == parameters(model)
    assert found["dtypes"] == {"float32": 4 * parameters(model)}
    assert found["layout"] == "*-" * LAYERS
    assert (found["format"], found["directory"], found["records"]) == ("llama", str(model), [])
    for cost, context in zip(found["cache"], (4096, 32768, 131072, 1048576), strict=True):
        kv = LAYERS * 2 * KV_HEADS * HEAD_DIM * context * 4  # float32
        assert cost == {"context": context, "kv": kv, "state": 0}


def test_inspect_counts_a_hybrid(run, hybrid):
    out, _ = run("inspect", hybrid, "--json")
    found = json.loads(out)
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    inner, groups, state, width = HEADS * HEAD_DIM, KV_HEADS, HEAD_DIM, 4
    channels = inner + 2 * groups * state
    projections = (inner + channels + HEADS) * (HIDDEN + 1) + HIDDEN * (inner + 1)
    block = projections + channels * (width + 1) + 3 * HEADS + inner  # A_log, D, dt_bias; norm
    assert kinds["Mamba-2"]["parameters"] == 3 * block
    assert kinds["attention"]["count"] == 1
    assert found["parameters"] == parameters(hybrid)
    assert found["layout"] == "M-M-*-M-"
    states = 3 * (4 * inner * state + 4 * channels * (width - 1))
    for cost in found["cache"]:
        assert cost["kv"] == 2 * KV_HEADS * HEAD_DIM * cost["context"] * 4
        assert cost["state"] == states
    assert found["obstacles"]["granitemoehybrid"] == ""
    assert found["obstacles"]["hybridize"] == ""
    assert "Mamba-2 blocks only" in found["obstacles"]["mamba2"]
    (record,) = found["records"]
    assert (record["command"], record["source"]["name"]) == ("convert", "llama")


def test_inspect_prints_tables(run, hybrid):
    out, err = run("inspect", hybrid)
    assert err == ""
    table = rows(out)
    assert table["checkpoint"] == [str(hybrid)]
    assert table["layout"] == ["M-M-*-M-"]
    assert table["parameters"] == [f"{parameters(hybrid):,}"]
    assert table["weights"] == [f"{parameters(hybrid) * 4 / 1024:.1f} KiB float32"]
    share = LAYERS * 3 * HIDDEN * MLP_WIDTH / parameters(hybrid)
    assert table["MLP"] == ["4", "24,576", f"{share:.1%}", "width 64, gated silu"]
    assert [table[context][0] for context in ("4k", "32k", "128k", "1M")] == [
        "512.0 KiB",
        "4.0 MiB",
        "16.0 MiB",
        "128.0 MiB",
    ]
    assert table["granitemoehybrid"] == ["yes"]
    assert table["mamba2"][0].startswith("no: ")
    assert table["1"][:2] == ["hybridize convert", "llama"]


# generate


@torch.no_grad()
def expected_text(directory: Path, prompt: str, count: int) -> str:
    """The continuation of stock transformers, with greedy decoding."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    stock = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = stock.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=2)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["model", "hybrid"])
def test_generate_streams_what_transformers_generates(run, request, name):
    directory = request.getfixturevalue(name)
    want = expected_text(directory, "Hello you", 20)
    assert len(want) >= 10
    options = ("generate", directory, "-p", "Hello you", "--max-new-tokens", 20)
    out, err = run(*options)
    assert out == f"Hello you{want}\n"
    assert err == ""
    out, _ = run(*options, "--json")
    assert json.loads(out) == {"prompt": "Hello you", "text": want}


def test_generate_without_a_prompt_starts_a_document(run, model):
    out, _ = run("generate", model, "--max-new-tokens", 5, "--json")
    want = expected_text(model, "<s>", 5)
    assert json.loads(out) == {"prompt": "", "text": want}


def test_samples_depend_on_the_seed_only(run, model):
    options = ("generate", model, "-p", "abc", "--temperature", 1.0, "--max-new-tokens", 30)
    texts = [run(*options, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    narrow, _ = run(*options, "--top-p", 1e-9)
    greedy, _ = run("generate", model, "-p", "abc", "--max-new-tokens", 30)
    assert narrow == greedy
    assert greedy not in texts


def test_generate_computes_in_the_given_dtype(run, hybrid, monkeypatch):
    from hybridize import generation

    seen = []
    load = generation.load_model

    def note(*arguments: object, **options: object):
        seen.append(load(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(generation, "load_model", note)
    for dtype in ("auto", "bfloat16"):
        run("generate", hybrid, "-p", "a", "--max-new-tokens", 2, "--dtype", dtype)
    assert [loaded.dtype for loaded in seen] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "error: --device cuda: "),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--temperature", "-1"], "--temperature"),
        (["--top-p", "0"], "--top-p"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_a_bad_option_of_generate_is_one_line(capsys, monkeypatch, model, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["generate", str(model), "-p", "Hello", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_checkpoint_without_a_tokenizer_cannot_generate(capsys, tmp_path):
    write_stock(tmp_path / "bare", "llama")
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "bare"), "-p", "Hello"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {tmp_path}/bare: no readable tokenizer: ")
    assert err.count("\n") == 1


# verify


def test_verify_prints_its_checks(run, hybrid):
    out, err = run("verify", hybrid)
    table = rows(out)
    assert table["weight files"] == ["1"]
    assert table["tensors"] == [str(len(load_file(hybrid / "model.safetensors")))]
    assert table["recorded commands"] == ["1"]
    assert out.count("checked") == 4
    assert err == f"no problems: {hybrid}\n"
    assert run("verify", hybrid, "--quiet") == (out, "")


def test_verify_prints_only_json_on_stdout_and_fails(capsys, run, hybrid, tmp_path):
    report = json.loads(run("verify", hybrid, "--json")[0])
    assert (report["problems"], report["bytes"]) == ([], 4 * parameters(hybrid))
    write_stock(tmp_path / "bad", "llama")
    config = tmp_path / "bad" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 9}))
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "bad"), "--json"]) == 1
    out, err = capsys.readouterr()
    problems = json.loads(out)["problems"]
    assert len(problems) == 2  # the embeddings and the head
    assert err.splitlines() == [
        *(f"error: {problem}" for problem in problems),
        f"error: {tmp_path}/bad: 2 problems",
    ]
