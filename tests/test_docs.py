"""Every code block of the documents runs on the bundled checkpoint.

The blocks of a page run from the top, in one folder that looks like the root of the repository.
The tables below list everything that is replaced or added: models, texts, and options that make a
command quick.
A comment above a block changes how it runs: ``<!-- not run: why -->`` only parses its commands,
and ``<!-- dry run: why -->`` adds ``--dry-run`` and uses files of the model's shape without
weights.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import load_file, save_file

from documents import SHELL, Block, blocks, command_lines, documents, hybridize_words
from hollow_checkpoints import SHAPES, write_converted, write_shape
from hybridize.__main__ import main
from hybridize.cli import cli
from hybridize.cli.config_options import take_config
from hybridize.demo import CHECKPOINT
from hybridize.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = documents(ROOT)
WITH_BLOCKS = [page for page in DOCUMENTS if list(blocks(page.read_text("utf-8")))]

MODELS = ("MODEL", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M-Instruct")
"""Replaced by the bundled checkpoint."""

TEXTS = {"NAME": "text.jsonl"}
"""Datasets of the hub, and the file that replaces each."""

LINKED = ("examples", "benchmarks", "README.md", "Makefile", "pyproject.toml")
"""Files and folders of the repository that pages refer to."""

PREPARED = {
    "kernels.md": ("hybridize convert MODEL -o hybrid",),
}
"""Commands that run before the blocks of a page; another page explains them."""

SMALLER: dict[str, dict[str, str]] = {
    "distill": {
        "--tokens": "512",
        "--seq-len": "64",
        "--batch-size": "4",
        "--validation-sequences": "2",
    },
    "prune": {"--calibration-tokens": "1024", "--candidates": "1"},
    "eval": {"--limit": "1"},
    "bench": {"--prompt-len": "16,32", "--gen-len": "4", "--repeats": "1"},
    "generate": {"--max-new-tokens": "4"},
}
"""Options that make a command quick. They replace its own, except in a dry run."""

ONLY_WITH: dict[str, tuple[tuple[str, str, str], ...]] = {
    "convert": (
        ("--calibration", "--calibration-tokens", "1024"),
        ("--select", "--calibration-tokens", "1024"),
    ),
    "quantize": (("--calibration", "--calibration-tokens", "1024"),),
    "eval": (("mmlu", "--mmlu-dir", "hybridize/demo/exam"),),
    "export": (("gguf", "--tokenizer", "none"),),  # llama.cpp has no rule for our tokenizer
}
"""More such options: (prefix, option, value), if a word of the command begins with the prefix."""

PLANNED = {("README.md", "export")}
"""Page and command: the command runs with ``--dry-run`` there, because another page runs it."""

LAYERS = {"onnx.md": 3}
"""Layers of the bundled checkpoint that some pages use; see `DEFAULT_LAYERS`."""

DEFAULT_LAYERS = 4
"""Layers of the bundled checkpoint that all other pages use. It has eight."""

MODEL = "hybridize/demo/checkpoint"
"""The bundled checkpoint, from the root of the repository."""

SIZES = {"24GiB@65536x4": "20MiB@4096x4"}
"""Memory budgets, and one that is small enough for a model of 1.3 million parameters."""


def parse(words: list[str]) -> click.Context:
    """Parse and check the options of a command; raises if one is wrong."""
    name, *rest = words
    group = click.Context(cli, **cli.context_settings)  # without the settings, -h would be unknown
    command = cli.get_command(group, name)
    assert command is not None, f"no command {name}"
    context = command.make_context(name, list(rest), parent=group)
    config_class = getattr(command.callback, "config_class", None)
    if config_class is not None:
        take_config(config_class, dict(context.params))
    return context


def as_run(words: list[str]) -> list[str]:
    """Apply the tables above to a command."""
    name, *rest = words
    replaced = dict.fromkeys(MODELS, MODEL) | TEXTS | SIZES
    rest = [replaced.get(word, word) for word in rest]
    if "--dry-run" in rest or "--predict" in rest:
        return [name, *rest]
    options = dict(SMALLER.get(name, {}))
    for word, option, value in ONLY_WITH.get(name, ()):
        if any(each.startswith(word) for each in rest):
            options[option] = value
    for option, value in options.items():
        if option in rest:
            rest[rest.index(option) + 1] = value
        else:
            rest += [option, value]
    return [name, *rest]


LONGEST = 128
"""Maximum length of a text that a teacher generates."""

MEASURED = ("--select", "--init")
"""Options with which convert runs the model; removed if the checkpoint has no weights."""


def without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """Return a command without some options and their values."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in options and before not in options
    ]


class Page:
    """A folder in which a page's blocks run, one after the other."""

    def __init__(self, name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.name = name
        self._capsys = capsys
        self._names: dict[str, Any] = {"__name__": "page"}
        for linked in LINKED:
            (folder / linked).symlink_to(ROOT / linked)
        write_shallow(folder / MODEL, LAYERS.get(name, DEFAULT_LAYERS))
        for linked in ("exam", "text"):
            (folder / MODEL).with_name(linked).symlink_to(CHECKPOINT.with_name(linked))
        text = (ROOT / "docs" / "conversion.md").read_text("utf-8")
        lines = [json.dumps({"text": part}) for part in re.split(r"\n{2,}", text)]
        for name in ("text.jsonl", "a.jsonl"):
            (folder / name).write_text("\n".join(lines * 4))
        _parquet(folder / "b.parquet", text)

    def run(self, block: Block) -> None:
        """Run a block; raises if it fails."""
        if block.language == "python":
            if block.how == "run":
                self._python(block)
        elif block.language in SHELL:
            for words in command_lines(block):
                self._command(words, block.how)

    def _python(self, block: Block) -> None:
        text = block.text
        for model in MODELS:
            text = text.replace(f'"{model}"', repr(MODEL))
        exec(compile(text, f"line {block.line}", "exec"), self._names)

    def _command(self, words: list[str], how: str) -> None:
        ours = hybridize_words(words)
        if ours is not None:
            with parse(ours) as context:
                has_dry_run = "dry_run" in context.params
            if how == "not run":
                return
            if how == "dry run":
                self._plan(ours)
                return
            # A command for several processes runs as a dry run in this process.
            planned = words[0] != "hybridize" or (self.name, ours[0]) in PLANNED
            self.hybridize([*ours, "--dry-run"] if planned and has_dry_run else ours)
        elif how == "run":
            self._other(words)

    def _plan(self, words: list[str]) -> None:
        """Run a command with ``--dry-run``, and write the files that later commands need."""
        for model in SHAPES:
            if model in words and not Path(model).exists():
                write_shape(Path(model), model)
        words = without(words, MEASURED)
        with parse(words) as context:
            options = context.params
        if "dry_run" not in options:
            return
        output = options["output"]
        if output.is_symlink():
            output.unlink()  # from an earlier recipe on the page
        shutil.rmtree(output, ignore_errors=True)
        self.hybridize([*words, *([] if options["dry_run"] else ["--dry-run"])])
        if words[0] == "convert":
            write_converted(Path(options["model"]), output, options)
        elif words[0] == "distill":
            output.symlink_to(Path(options["student"]).resolve())

    def hybridize(self, words: list[str]) -> None:
        """Run a command of hybridize in this process."""
        words = as_run(words)
        code = main(words)
        stderr = self._capsys.readouterr().err
        assert code == 0, f"hybridize {shlex.join(words)}: {stderr.strip()}"

    def _other(self, words: list[str]) -> None:
        match words:
            case ["make", target, *_]:
                assert re.search(f"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
            case ["pip", "install", what]:
                assert_installable(what)
            case ["python", script, *_] if script.startswith("benchmarks/"):
                assert (ROOT / script).is_file(), script  # not run: benchmarks take minutes
            case [script, *_] if script.startswith("benchmarks/"):
                assert os.access(ROOT / script, os.X_OK), script
            case ["python", *arguments]:
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            case _:
                raise AssertionError(f"{shlex.join(words)}: unknown command; say why it is not run")


def write_shallow(folder: Path, layers: int) -> None:
    """Write the bundled checkpoint with its first layers only."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    tensors = load_file(folder / "model.safetensors")
    kept = {}
    for name, tensor in tensors.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        if layer is None or int(layer[1]) < layers:
            kept[name] = tensor
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _parquet(path: Path, text: str) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"text": [text]}), path)


def assert_installable(what: str) -> None:
    """Check that the extras in ``.[EXTRA]`` or ``hybridize[EXTRA]`` exist."""
    found = re.fullmatch(r"(?:\.|hybridize)(?:\[(.*)\])?", what)
    assert found, what
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra in filter(None, (found[1] or "").split(",")):
        assert extra in project["optional-dependencies"], extra


@pytest.mark.timeout(900)  # for a busy machine
@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: path.stem)
def test_blocks_run(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hybridize.data.teacher_samples._MAX_LENGTH", LONGEST)
    page = Page(document.name, tmp_path, capsys)
    for line in PREPARED.get(document.name, ()):
        page.hybridize(shlex.split(line)[1:])
    for block in blocks(document.read_text("utf-8")):
        try:
            page.run(block)
        except Exception as error:
            error.add_note(f"{document.relative_to(ROOT)}, line {block.line}")
            raise


@pytest.mark.parametrize("line", ["convert a -o b --atention 2", "conver a", "bench a --repeats x"])
def test_a_mistake_in_a_command_is_found(line):
    with pytest.raises((click.ClickException, InputError, AssertionError)):
        parse(shlex.split(line))
    (block,) = blocks(f"```\nhybridize {line}  # so\n```\n")
    assert [hybridize_words(words) for words in command_lines(block)] == [shlex.split(line)]


def test_a_block_that_fails_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Page("x.md", tmp_path, capsys)
    for text in (
        "```\nhybridize verify nowhere\n```",
        "```python\nraise ValueError\n```",
        "```\nfrobnicate\n```",
        "```\npip install '.[nothing]'\n```",
        "<!-- not run: too large -->\n```\nhybridize verify --nonsense x\n```",
    ):
        (block,) = blocks(text)
        with pytest.raises((AssertionError, ValueError, click.ClickException)):
            page.run(block)


def test_comments_above_blocks_are_read():
    text = "<!-- not run: needs a GPU -->\n```bash\nhybridize eval x \\\n  --limit 1\n```\n"
    (block,) = blocks(text)
    assert (block.how, block.reason, block.line) == ("not run", "needs a GPU", 3)
    assert list(command_lines(block)) == [["hybridize", "eval", "x", "--limit", "1"]]
    (block,) = blocks("<!-- other -->\n   ```python\n   x = 1\n   ```\n")
    assert (block.how, block.text) == ("run", "x = 1\n")
    launched = ["torchrun", "--nproc-per-node", "8", "-m", "hybridize", "distill", "x"]
    assert hybridize_words(launched) == ["distill", "x"]
