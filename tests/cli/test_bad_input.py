"""Bad input of `convert` gives one line and exit code 2, and nothing is written."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridize.__main__ import main
from hybridize.checkpoints import CheckpointReader, CheckpointWriter
from hybridize.checkpoints.formats import FORMATS
from tiny import write_stock

SCRIPT = Path(sys.executable).with_name("hybridize")
INDEX = "model.safetensors.index.json"
NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"
Damage = Callable[[Path], None]


def write(name: str, content: str | bytes) -> Damage:
    return lambda directory: (
        (directory / name).write_bytes(content)
        if isinstance(content, bytes)
        else (directory / name).write_text(content)
    )


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def config(**fields: object) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


def cut(count: int) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-count])

    return damage


def index(shard: str) -> Damage:
    def damage(directory: Path) -> None:
        # Under its usual name, the file would have precedence over the index.
        (directory / "model.safetensors").rename(directory / "other.safetensors")
        names = load_file(directory / "other.safetensors")
        weight_map = dict.fromkeys(names, "other.safetensors") | {NORM: shard}
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return damage


def only_pickles(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "no directory": (shutil.rmtree, ["{model}: no such directory"]),
    "no config.json": (remove("config.json"), ["{model}/config.json: missing"]),
    "invalid JSON": (write("config.json", "{'a': 1}"), ["{model}/config.json: not valid JSON"]),
    "not an object": (write("config.json", "[]"), ["{model}/config.json", "object"]),
    "unknown type": (config(model_type="gpt5"), ["{model}/config.json", "'gpt5'", *FORMATS]),
    "no type": (config(model_type=None), ["{model}/config.json", "model_type", *FORMATS]),
    "quantized": (config(quantization_config={"bits": 4}), ["{model}/config.json", "quantized"]),
    "contradiction": (config(num_attention_heads=5), ["{model}/config.json"]),
    "RoPE without a base": (
        config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
        ["{model}/config.json", "rope_parameters do not describe a RoPE"],
    ),
    "RoPE of a list": (
        config(rope_parameters={"rope_type": [1], "rope_theta": 1e4}),
        ["{model}/config.json"],
    ),
    "RoPE that is not finite": (
        config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}),
        ["{model}/config.json", "rope_parameters"],
    ),
    "truncated": (cut(1), ["{model}/model.safetensors", "truncated"]),
    "empty": (write("model.safetensors", b""), ["{model}/model.safetensors"]),
    "corrupt": (write("model.safetensors", b"\xff" * 99), ["{model}/model.safetensors"]),
    "no weights": (remove("model.safetensors"), ["{model}", "model.safetensors"]),
    "pickle": (only_pickles, ["{model}/pytorch_model.bin", "pickled", "save_pretrained"]),
    "missing shard": (index("gone.safetensors"), [INDEX, "'gone.safetensors'", "missing"]),
    "shard outside": (index("../in.safetensors"), [INDEX, "'../in.safetensors'"]),
    "shard at an absolute path": (index("/etc/passwd"), [INDEX, "'/etc/passwd'"]),
    "missing tensor": (weights(lambda t: t.pop(NORM)), ["{model}", f"'{NORM}'", "missing"]),
    "extra tensor": (
        weights(lambda t: t.update(stray=torch.ones(1))),
        ["{model}", "'stray'", "is not part of a llama model"],
    ),
    "wrong shape": (
        weights(lambda t: t.update({NORM: torch.ones(3)})),
        ["{model}", f"'{NORM}'", "[3]", "[32]"],
    ),
    "wrong dtype": (
        weights(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})),
        ["{model}", f"'{NORM}'", "float8_e4m3fn", "bfloat16"],
    ),
    "NaN": (
        weights(lambda t: t[GATE].view(-1)[-1:].fill_(torch.nan)),
        ["{model}/model.safetensors", f"'{GATE}'", "NaN", "--allow-nonfinite"],
    ),
    "infinity": (
        weights(lambda t: t[GATE].view(-1)[:1].fill_(-torch.inf)),
        [f"'{GATE}'", "infinity", "--allow-nonfinite"],
    ),
    "bad record": (write("hybridize.json", "{}"), ["{model}/hybridize.json"]),
}

OPTIONS: dict[str, list[str]] = {
    "--keep 99": ["--keep 99:", "0 to 3"],
    "--keep -1": ["--keep -1:", "at least 0"],
    "--keep 1,x": ["--keep 1,x:", "at least 0"],
    "--pattern *-*-": ["--pattern", "4 blocks", "8"],
    "--pattern *-*-*-*X": ["--pattern:", "X"],
    "--pattern M-M-M-MM": ["--pattern:", "block 7"],
    "--pattern M-*-*-*- --keep 1": ["--keep and --pattern"],
    "--attention 5": ["--attention 5:", "0 to 4"],
    "--attention -1": ["--attention -1:", "0 to 4"],
    "--attention 101%": ["--attention 101%:", "0 to 4"],
    "--attention nan%": ["--attention nan%:", "0 to 4"],
    "--attention some": ["--attention some:", "0 to 4"],
    "--ssm-groups 3": ["--ssm-groups 3:", "1, 2, 4"],
    "--ssm-groups 0": ["--ssm-groups 0:", "1, 2, 4"],
    "--ssm-groups all": ["--ssm-groups all:", "1, 2, 4"],
    "--ssm-expand 3": ["--ssm-expand 3:", "from 1 to 2"],
    "--d-state 0": ["--d-state 0:", "at least 1"],
    "--format gguf": ["--format gguf", "auto", *FORMATS],
    "--format llama": ["--format llama", "Mamba-2"],
    "--max-shard-size 5": ["--max-shard-size 5:", "5GB or 500MiB"],
    "--max-shard-size 0GB": ["--max-shard-size 0GB:", "5GB or 500MiB"],
    "--max-shard-size -1GB": ["--max-shard-size -1GB:", "5GB or 500MiB"],
    "--max-shard-size 1e9GB": ["--max-shard-size 1e9GB:", "5GB or 500MiB"],
    "--dtype int8": ["--dtype int8:", "bfloat16"],
    "--init zeros": ["--init zeros:", "attention, random"],
    "--select best": ["--select best:", "sensitivity"],
    "--seed -1": ["--seed -1:", "from 0 to"],
    "--no-ssm-bias": ["--no-ssm-bias needs --calibration"],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("bad-input") / "in"
    write_stock(directory, "llama")
    return directory


@pytest.fixture
def model(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "in"))


def contents(directory: Path) -> dict[str, str]:
    """Every file and directory below a directory, with a hash of each file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(directory.rglob("*"))
    }


def assert_one_line(out: str, err: str, words: list[str]) -> None:
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert [word for word in words if word not in err] == [], err


def assert_rejected(capsys, tmp_path: Path, arguments: list[object], words: list[str]) -> None:
    before = contents(tmp_path)
    assert main(list(map(str, arguments))) == 2
    assert_one_line(*capsys.readouterr(), words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", DAMAGES)
def test_bad_checkpoints_are_rejected(capsys, tmp_path, model, what):
    damage, words = DAMAGES[what]
    damage(model)
    words = [word.format(model=model) for word in words]
    assert_rejected(capsys, tmp_path, ["convert", model, "-o", tmp_path / "out"], words)


@pytest.mark.parametrize("what", ["NaN", "infinity"])
def test_nonfinite_weights_are_converted_with_allow_nonfinite(capsys, tmp_path, model, what):
    DAMAGES[what][0](model)
    arguments = ["convert", model, "-o", tmp_path / "out", "--allow-nonfinite", "--keep", "1"]
    assert main(list(map(str, arguments))) == 0
    with CheckpointReader(tmp_path / "out", allow_nonfinite=True) as reader:
        bad = [name for name in reader.names if not reader.get(name).isfinite().all()]
    assert bad == ["model.layers.1.shared_mlp.input_linear.weight"]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_bad_options_are_rejected(capsys, tmp_path, model, options, dry):
    arguments = ["convert", model, "-o", tmp_path / "out", *options.split(" "), *dry]
    assert_rejected(capsys, tmp_path, arguments, OPTIONS[options])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("exists", ["{output}: exists already", "--force"]),
        ("file", ["{output}"]),
        ("file/out", ["{output}", "not a directory"]),
        ("in", ["{output}", "source"]),
        ("in/out", ["{output}", "source"]),
        ("/proc/none", ["{output}"]),
        ("x" * 300, ["{output}", "too long"]),
    ],
)
def test_bad_outputs_are_rejected(capsys, tmp_path, model, output, words):
    (tmp_path / "exists").mkdir()
    (tmp_path / "exists" / "precious").write_text("data")
    (tmp_path / "file").write_text("data")
    if output.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    path = tmp_path / output
    words = [word.format(output=path) for word in words]
    assert_rejected(capsys, tmp_path, ["convert", model, "-o", path], words)


def obey_permissions() -> None:
    """Drop root's right to write anywhere, for the program that this process runs next."""
    drop, write_anywhere = 24, 1  # PR_CAPBSET_DROP and CAP_DAC_OVERRIDE of Linux
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(drop, write_anywhere):
        raise OSError(ctypes.get_errno(), "prctl")


def test_an_output_without_permission_is_rejected(tmp_path, model):
    (tmp_path / "closed").mkdir(mode=0o555)
    command = [SCRIPT, "convert", model, "-o", tmp_path / "closed" / "out"]
    before = contents(tmp_path)
    found = subprocess.run(command, capture_output=True, text=True, preexec_fn=obey_permissions)
    assert found.returncode == 2
    assert_one_line(found.stdout, found.stderr, [f"{tmp_path}/closed/out: no permission"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["inspect", "verify", "generate"])
@pytest.mark.parametrize("what", ["no directory", "no config.json", "truncated", "pickle"])
def test_other_commands_reject_bad_checkpoints_too(capsys, tmp_path, model, command, what):
    damage, words = DAMAGES[what]
    damage(model)
    words = [word.format(model=model) for word in words]
    assert_rejected(capsys, tmp_path, [command, model], words)


@pytest.mark.parametrize("name", ["some/model", "model", "x" * 300, "no/such/directory", "./a/b"])
def test_a_missing_model_is_rejected(capsys, tmp_path, name):
    assert_rejected(
        capsys, tmp_path, ["convert", name, "-o", tmp_path / "out"], [f"{name}: no such"]
    )


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the command in a new process, where libraries may print on import and at exit."""
    command = [SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_an_unreachable_hub_is_one_line(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = os.environ | {
            "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        done = run("convert", "some/model", "-o", tmp_path / "out", env=environment)
    assert done.returncode == 2
    assert_one_line(done.stdout, done.stderr, ["some/model: no such directory", "hub"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_an_interrupt_or_a_full_disk_leaves_nothing_behind(
    capsys, monkeypatch, tmp_path, model, failure, force
):
    (tmp_path / "other").mkdir()
    output = tmp_path / ("other" if force else "out")
    before = contents(tmp_path)
    add, added = CheckpointWriter.add, []

    def fail_midway(self, name: str, tensor: torch.Tensor) -> None:
        added.append(name)
        if len(added) == 5:
            assert list(tmp_path.glob("*.partial-*"))
            monkeypatch.setattr(os, "write", fail)
        add(self, name, tensor)

    def fail(*_: object) -> int:
        monkeypatch.setattr(os, "write", write_)  # pytest writes with it, too
        raise failure

    write_ = os.write
    monkeypatch.setattr(CheckpointWriter, "add", fail_midway)
    code = main(["convert", str(model), "-o", str(output), *force])
    words = ["interrupted"] if failure is KeyboardInterrupt else [f"{output}: no space left"]
    assert code == (130 if failure is KeyboardInterrupt else 1)
    out, err = capsys.readouterr()
    assert_one_line(out, err.removeprefix("\n"), words)  # click ends the line with ^C
    assert contents(tmp_path) == before


def test_a_file_size_limit_of_the_system_is_one_line(capsys, monkeypatch, tmp_path, model):
    """The system itself rejects a write in the middle of a file."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes; the result has twice that
    try:
        code = main(["convert", str(model), "-o", str(tmp_path / "new" / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert_one_line(*capsys.readouterr(), [f"{tmp_path}/new/out: File too large"])
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_a_signal_from_ctrl_c_is_one_line(capsys, monkeypatch, tmp_path, model):
    before = contents(tmp_path)
    add, added = CheckpointWriter.add, []

    def interrupt(self, name: str, tensor: torch.Tensor) -> None:
        added.append(name)
        if len(added) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        add(self, name, tensor)

    monkeypatch.setattr(CheckpointWriter, "add", interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(["convert", str(model), "-o", str(tmp_path / "out")])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 130
    out, err = capsys.readouterr()
    assert err == "stopped by SIGINT; no unfinished output is left; run it again\n"
    assert out == ""
    assert contents(tmp_path) == before
