"""What all commands share: help, common options, errors and exit codes."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import hybridize.__main__ as entry
from hybridize.cli import COMMANDS, cli, options
from hybridize.cli.config_options import config_options
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.options import (
    Config,
    device_option,
    dry_run_option,
    dtype_option,
    force_option,
    seed_option,
)  # fmt: skip

SCRIPT = Path(sys.executable).with_name("hybridize")
HEAVY = {"torch", "transformers", "numpy", "safetensors", "lm_eval", "datasets", "rich"}


def run(*arguments: str, program: tuple = (SCRIPT,), **options) -> subprocess.CompletedProcess:
    return subprocess.run([*program, *arguments], capture_output=True, text=True, **options)


def heavy_imports(code: str) -> set[str]:
    """The heavy libraries that ``code`` imports in a new interpreter."""
    code += "\nimport sys; print('|'.join({name.split('.')[0] for name in sys.modules}))"
    done = run("-c", code, program=(sys.executable,), check=True)
    return HEAVY & set(done.stdout.splitlines()[-1].split("|"))


def test_help_lists_every_command_in_order():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    _, _, listed = done.stdout.partition("Commands:\n")
    words = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert words[: len(COMMANDS)] == list(COMMANDS)


@pytest.mark.parametrize(
    "code",
    [
        "import hybridize; dir(hybridize)",
        "from hybridize.__main__ import main; main(['--help'])",
        "from hybridize.__main__ import main; main(['--version'])",
        "from hybridize.cli import cli, COMMANDS as all; [cli.get_command(None, n) for n in all]",
        "from hybridize.__main__ import main; main('convert m -o o --d-state 0'.split())",
    ],
    ids=["importing hybridize", "help", "version", "importing every command", "a bad option"],
)
def test_heavy_libraries_are_not_imported_by(code):
    assert heavy_imports(code) == set()


def test_the_check_for_heavy_imports_can_fail():
    assert "numpy" in heavy_imports("import numpy")


def test_module_and_script_are_the_same_command():
    by_module = run("--version", program=(sys.executable, "-m", "hybridize"))
    by_script = run("--version")
    assert by_module.stdout == by_script.stdout
    assert by_script.stdout.startswith("hybridize 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_registry_and_the_command_have_the_same_short_help(name):
    command = cli.get_command(None, name)
    assert command.name == name
    assert COMMANDS[name].short_help == command.get_short_help_str(limit=200)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name):
    command = cli.get_command(None, name)
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"--json", "--quiet", "--debug"} <= flags
    assert CliRunner().invoke(cli, [name, "-h"]).exit_code == 0


def test_a_misspelled_command_gets_a_suggestion():
    done = run("covnert", "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no such command 'covnert'; did you mean 'convert'? (try 'hybridize --help')\n"
    )


def test_an_unknown_command_lists_all_commands():
    done = run("zzz")
    assert done.returncode == 2
    assert all(f"'{name}'" in done.stderr for name in COMMANDS)


def test_no_command_shows_the_help_and_exits_with_2():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "No such option"),
        (["verify"], "Missing argument"),
        (["convert", "model", "-o", "out", "--nope"], "No such option"),
    ],
)
def test_an_error_of_click_is_one_line_with_a_hint(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    command = " ".join(["hybridize", *[word for word in arguments[:1] if word in COMMANDS]])
    assert done.stderr.endswith(f"(try '{command} --help')\n")


@pytest.fixture
def fail(monkeypatch):
    """Let ``hybridize fail`` raise a chosen exception."""
    # main() sets these two; monkeypatch restores them.
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def set_up(failure: BaseException) -> None:
        @click.group()
        @options.debug_option
        def group() -> None: ...

        @group.command()
        @options.common_options
        def fail() -> None:
            raise failure

        monkeypatch.setattr(entry, "cli", group)

    return set_up


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (InputError("--keep 9: there are 4 blocks"), 2, "--keep 9: there are 4 blocks"),
        (HybridizeError("the loss\nis NaN"), 1, "the loss is NaN"),
        (
            click.BadParameter("too small"),
            2,
            "Invalid value: too small (try 'hybridize fail --help')",
        ),
        (
            click.FileError("a.csv", "no permission"),
            1,
            "Could not open file 'a.csv': no permission",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), 1, "a.csv: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (OSError("cannot reach\nthe hub"), 1, "cannot reach the hub"),
        (KeyError("x"), 1, "KeyError: 'x' (run again with --debug for the traceback)"),
        (
            MemoryError(),
            1,
            "not enough memory (a tensor is too large); a smaller batch or shorter texts need less",
        ),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes.\nframe"
            ),
            1,
            "not enough memory ([enforce fail] DefaultCPUAllocator: can't allocate memory: "
            "9 bytes.); a smaller batch or shorter texts need less",
        ),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(fail, capsys, failure, code, line):
    fail(failure)
    assert entry.main(["fail"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.lstrip("\n") == f"error: {line}\n"


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
@pytest.mark.parametrize("failure", [InputError("wrong"), ValueError("wrong")])
def test_debug_shows_the_traceback(fail, capsys, arguments, failure):
    fail(failure)
    assert entry.main(arguments) == getattr(failure, "exit_code", 1)
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert "raise failure\n" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "run again" not in err


def test_debug_applies_to_one_run_only(fail, capsys):
    fail(InputError("wrong"))
    entry.main(["fail", "--debug"])
    capsys.readouterr()
    entry.main(["fail"])
    assert capsys.readouterr().err == "error: wrong\n"


def test_a_failure_with_json_leaves_stdout_empty(fail, capsys):
    fail(InputError("wrong"))
    assert entry.main(["fail", "--json"]) == 2
    assert capsys.readouterr() == ("", "error: wrong\n")


def test_a_closed_pipe_gives_no_message():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([SCRIPT, "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")  # 128 + SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([SCRIPT, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_transformers_is_quiet_unless_the_environment_says_otherwise(fail, monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    fail(InputError("wrong"))
    entry.main(["fail"])
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"


@dataclass(frozen=True, kw_only=True)
class EchoConfig(Config):
    force: bool = force_option()
    dry_run: bool = dry_run_option()
    device: str = device_option()
    dtype: str = dtype_option("Dtype of the weights.")
    seed: int = seed_option()


@click.command()
@options.model_argument
@options.output_option("Where to write.")
@config_options(EchoConfig)
def echo(config: EchoConfig, **values: object) -> None:
    """Print the values of the options."""
    print("library output", flush=True)
    console.message("message")
    if console.json_mode:
        console.json({name: str(value) for name, value in values.items()} | asdict(config))


def test_shared_options_have_defaults_and_json_is_alone_on_stdout():
    done = CliRunner().invoke(echo, ["some/model", "-o", "out", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "model": "some/model",
        "output": "out",
        "force": False,
        "dry_run": False,
        "device": "auto",
        "dtype": "auto",
        "seed": 0,
    }
    assert done.stderr == "library output\nmessage\n"
    assert not console.json_mode


def test_shared_options_accept_values():
    words = "m -o out --force --dry-run --device cpu --dtype bfloat16 --seed 7 --quiet --json"
    done = CliRunner().invoke(echo, words.split())
    assert json.loads(done.stdout) == {
        "model": "m",
        "output": "out",
        "force": True,
        "dry_run": True,
        "device": "cpu",
        "dtype": "bfloat16",
        "seed": 7,
    }
    assert done.stderr == "library output\n"
    assert not console.quiet


@pytest.mark.parametrize(
    "words", ["--device tpu", "--dtype int8", "--seed -1", "--seed x"], ids=lambda words: words
)
def test_shared_options_reject_other_values(words):
    done = CliRunner().invoke(echo, ["m", "-o", "out", *words.split()])
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2
    assert str(done.exception).startswith(f"{words}: ")


def test_output_rejects_a_file_for_a_directory_and_vice_versa(tmp_path):
    a_file = tmp_path / "file"
    a_file.touch()

    @click.command()
    @options.output_option("A report.", file=True)
    def report(output: Path) -> None:
        print(output)

    assert CliRunner().invoke(echo, ["m", "-o", str(a_file)]).exit_code == 2
    assert CliRunner().invoke(report, ["-o", str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(report, ["-o", str(a_file)]).stdout == f"{a_file}\n"
    assert CliRunner().invoke(report, []).exit_code == 2
