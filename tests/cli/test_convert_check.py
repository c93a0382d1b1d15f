"""`convert --check` and `--no-check`, and what happens if the check is not possible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hybridize
from hybridize.__main__ import main
from hybridize.conversion import check, check_models
from tiny import write_stock, write_tokenizer

SCRIPT = Path(sys.executable).with_name("hybridize")
MISSING = "not checked: a text: "


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Llama with a tokenizer. Treat it as read-only: the module shares it."""
    directory = tmp_path_factory.mktemp("check") / "llama"
    write_stock(directory, "llama")
    write_tokenizer(directory)
    return directory


@pytest.fixture
def run(capsys, tmp_path, check_by_default):
    """Convert, and return the exit code, stdout, and the lines of stderr."""

    def call(model: Path, *words: str) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = main(["convert", str(model), "-o", str(tmp_path / "out"), *words])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return call


def test_convert_checks_by_default(model, tmp_path):
    """In a process of its own, as a user runs it."""
    command = [SCRIPT, "convert", model, "-o", tmp_path / "out", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["check"]
    assert found["skipped"] is None
    assert found["unreached"] == []
    assert [(one["compared"], one["input"]) for one in found["comparisons"]] == [
        (compared, given)
        for compared in ("source", "result", "conversion")
        for given in ("random tokens", "a text", "positions around 256 (max_position_embeddings)")
    ]
    assert all(0 <= one["difference"] <= one["allowed"] for one in found["comparisons"])
    assert done.stderr == ""


def test_the_table_shows_the_differences(run, model):
    code, out, err = run(model, "--attention", "100%")
    assert code == 0
    assert len(err) == 2
    assert "largest difference of logits" in out
    row = next(line for line in out.splitlines() if "random tokens" in line)
    assert row.count(" 0 of ") == 3


def test_a_text_without_a_tokenizer_is_named(run, tmp_path):
    write_stock(tmp_path / "in", "llama")
    code, out, err = run(tmp_path / "in")
    assert code == 0
    assert "random tokens" in out
    assert [line.startswith(MISSING) for line in err] == [True, False, False]


def test_no_check(run, model):
    code, out, err = run(model, "--no-check", "--json")
    assert (code, json.loads(out)["check"], len(err)) == (0, None, 0)


OBSTACLES = {
    "memory": (check, "available_memory", lambda: 100_000, "MiB of memory, and 97.7 KiB are free"),
    "unknown memory": (check, "available_memory", lambda: None, "does not say how much memory"),
    "unknown type": (check, "is_stock", lambda _: False, "no class for model_type 'llama'"),
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=str)
@pytest.mark.parametrize("name", OBSTACLES)
def test_a_check_that_is_not_possible(run, model, tmp_path, monkeypatch, name, dry):
    *target, reason = OBSTACLES[name]
    monkeypatch.setattr(*target)
    code, _, (line,) = run(model, "--check", *dry)
    assert code == 2
    assert line.startswith(f"error: --check: {model} cannot be checked: ")
    assert reason in line
    assert line.endswith("; leave out --check")
    assert list(tmp_path.iterdir()) == []
    code, out, (line, *_) = run(model)
    assert code == 0
    assert line.startswith("not checked: ")
    assert reason in line
    assert "largest difference" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8(model, tmp_path, capsys, check_by_default):
    output = os.fsdecode(os.fsencode(tmp_path / "out") + b"\xff")
    assert main(["convert", str(model), "-o", output, "--check"]) == 2
    assert "opens no path that is not UTF-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["convert", str(model), "-o", output, "--quiet"]) == 0
    assert hybridize.verify(output).problems == ()


def cannot_open(directory, **_):
    raise ValueError(f"no such layer in {directory}\nand more")


def memory_is_full(*_, **__):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(("fails", "reason"), [(cannot_open, "transformers cannot run it: "
    "ValueError: no such layer in llama"), (memory_is_full, "can't allocate memory")])  # fmt: skip
def test_transformers_fails_on_the_source(run, model, tmp_path, monkeypatch, fails, reason):
    monkeypatch.setattr(check_models, "load_stock_model", fails)
    code, _, (line,) = run(model, "--check")
    assert code == 2
    assert reason in line
    assert list(tmp_path.iterdir()) == []
    code, _, (line, *_) = run(model)
    assert code == 0
    assert line.startswith("not checked: ")
    assert reason in line
    assert str(tmp_path.parent) not in (tmp_path / "out" / "hybridize.json").read_text()


@pytest.mark.parametrize("words", [(), ("--check",)], ids=str)
@pytest.mark.parametrize("fails", [cannot_open, memory_is_full])
def test_transformers_fails_on_the_result(run, model, tmp_path, monkeypatch, fails, words):
    load = check_models.load_stock_model

    def opened(directory):
        return load(directory) if directory == model else fails(directory)

    monkeypatch.setattr(check_models, "load_stock_model", opened)
    code, _, lines = run(model, *words)
    if fails is memory_is_full and not words:
        assert code == 0
        assert lines[0].startswith("not checked: not enough memory (")
        return
    assert code == 1
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == []
    if fails is cannot_open:
        start = f"error: {tmp_path / 'out'}: transformers cannot run the result: ValueError: no"
        assert lines[0].startswith(start)
        assert "--no-check converts without the check" in lines[0]


def test_hybridize_fails_on_the_source(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(check_models, "load_model", cannot_open)
    code, _, (line,) = run(model)
    assert code == 1
    assert "transformers can run it, and hybridize cannot: ValueError: no such layer" in line
    assert list(tmp_path.iterdir()) == []


def test_weights_that_may_be_infinite_are_not_checked(run, model, tmp_path):
    code, _, (line,) = run(model, "--check", "--allow-nonfinite")
    assert code == 2
    assert "--check" in line
    assert "--allow-nonfinite" in line
    code, _, (line, *_) = run(model, "--allow-nonfinite")
    assert (code, line) == (0, "not checked: the weights may have NaN or infinity in them")


@pytest.mark.parametrize("attention", ["0%", "50%"])
def test_no_remote_code_runs(run, model, tmp_path, attention):
    """Neither that of the source, nor the modeling file that the result gets."""
    source = tmp_path / "in"
    write_stock(source, "llama")
    write_tokenizer(source)
    evil = f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n"
    (source / "evil.py").write_text(evil)
    for name in ("config.json", "tokenizer_config.json"):
        raw = json.loads((source / name).read_text())
        raw["auto_map"] = {
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.Tokenizer", None],
        }
        (source / name).write_text(json.dumps(raw))
    code, out, err = run(source, "--attention", attention, "--format", "hybridize")
    assert code == 0, err
    assert "random tokens" in out
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules
