"""Names of files and prompts that are not UTF-8, in every command that writes."""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from hybridize.__main__ import main
from hybridize.checkpoints.checksums import load_checked
from hybridize.file_names import is_utf8, utf8, utf8_path
from tiny import LETTERS, write_stock, write_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs names that are any bytes")

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_stock(tmp_path / "model", "llama")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / NAME)
    (tmp_path / f"{NAME}.txt").write_text(" ".join(LETTERS) * 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_survive_json():
    text = json.dumps({"name": f'"\\{NAME}×'}, ensure_ascii=False)
    assert json.loads(utf8(text).decode()) == {"name": f'"\\{NAME}×'}
    assert os.fsencode(json.loads(utf8(text))["name"]) == b'"\\caf\xe9\xc3\x97'
    assert is_utf8("café")
    assert not is_utf8(NAME)


def test_libraries_get_a_name_that_they_can_open(folder):
    path = folder / f"{NAME}.txt"
    with utf8_path(path) as opened:
        assert is_utf8(str(opened))
        assert opened.read_text() == path.read_text()
    with utf8_path(folder) as opened:
        assert opened == folder


def run(line: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed. Pytest captures UTF-8 only."""
    with (
        open("out", "w", encoding="utf-8") as out,
        open("err", "w", encoding="utf-8") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = main(line.split(" "))
    texts = (Path(name).read_text("utf-8", "surrogateescape") for name in ("out", "err"))
    return code, *texts


def test_commands_accept_names_that_are_not_utf8(folder):
    """Inputs, outputs, working directories and what one command hands to the next."""
    text, hybrid, trained = f"{NAME}.txt", f"hybrid-{NAME}", f"trained-{NAME}"
    distill = (
        f"distill {hybrid} -o {trained} --teacher {NAME} --data {text} --tokens 128 --seq-len 16 "
        "--batch-size 2 --validation-sequences 2 --stages kl --device cpu --cache-teacher 2 "
        f"--cache-dir cache-{NAME} --quiet"
    )
    for line in (
        f"convert {NAME} -o {hybrid} --attention 1 --calibration {text} --calibration-tokens 1024",
        distill,
        f"{distill} --force",  # reads the cache
        f"prune {trained} -o pruned --params 90% --candidates 1 --calibration {text} "
        f"--calibration-tokens 1024 --scores scores-{NAME} --device cpu",
        f"quantize {trained} -o fp8-{NAME} --keep-bf16 0",
        f"eval {NAME} {hybrid} --perplexity {text} --max-length 16 -o eval-{NAME}.json",
        f"bench {NAME} --prompt-len 8 --gen-len 2 --repeats 1 -o bench.json --plot b-{NAME}.png",
        f"report eval-{NAME}.json bench.json scores-{NAME} {trained} -o r-{NAME}.html --png",
        f"inspect {trained} --json",
        f"verify fp8-{NAME}",
        f"generate {NAME} -p hi --max-new-tokens 2 --device cpu",
    ):
        code, out, err = run(line)
        assert code == 0, (ascii(line), ascii(err))
        if line.startswith("inspect"):
            assert json.loads(out)["directory"] == trained
    records = json.loads((folder / trained / "hybridize.json").read_text("utf-8"))["steps"]
    assert [record["options"].get("calibration") for record in records] == [text, None]
    assert load_checked(folder / f"scores-{NAME}")[0]
    written = json.loads((folder / f"eval-{NAME}.json").read_text("utf-8"))
    assert set(written["models"]) == {NAME, hybrid}


def test_a_run_with_such_names_is_resumed(folder, monkeypatch):
    import hybridize
    from hybridize.compress.distill.stages.kl import KL

    hybridize.convert(NAME, "hybrid", attention=1)
    options = {
        "teacher": NAME, "data": f"{NAME}.txt", "tokens": 128, "seq_len": 16, "batch_size": 2,
        "validation_sequences": 2, "stages": "kl", "device": "cpu",
    }  # fmt: skip

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KL, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hybridize.distill("hybrid", f"out-{NAME}", **options)
    hybridize.distill("hybrid", f"out-{NAME}", resume=True, **options)
    assert not Path(f"out-{NAME}.distill").exists()


def test_a_prompt_must_be_utf8(folder):
    code, _, err = run(f"generate {NAME} -p hi{NAME}")
    assert (code, err) == (2, "error: --prompt: is not UTF-8 text; give it in UTF-8\n")
