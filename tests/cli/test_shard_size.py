"""The option `--max-shard-size` of the commands that write checkpoints."""

import json

import pytest

from hybridize.__main__ import main
from tiny import write_stock

PRUNE = ("--params", "80%", "--calibration-tokens", "1k", "--candidates", "1")
COMMANDS = {
    "convert": (),
    "prune": PRUNE,
    "quantize": ("--scheme", "fp8", "--keep-bf16", "0"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("size", "maximum"), [("0.02 MiB", 20_971), ("5GB", 10**9)])
def test_weight_files_do_not_exceed_the_maximum_size(tmp_path, command, size, maximum):
    write_stock(tmp_path / "model", "granitemoehybrid" if command == "quantize" else "llama")
    words = [command, str(tmp_path / "model"), "-o", str(tmp_path / "out"), *COMMANDS[command]]
    assert main([*words, "--max-shard-size", size, "--quiet"]) == 0
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert all(path.stat().st_size < maximum + 5_000 for path in files)  # the headers are extra
    assert (len(files) > 1) == (size != "5GB")
    if len(files) > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {path.name for path in files}
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("size", ["5", "GB", "-1GB", "0MB", "5 parsecs"])
def test_a_bad_size_is_one_line(tmp_path, capsys, command, size):
    assert main([command, "model", "-o", str(tmp_path / "out"), f"--max-shard-size={size}"]) == 2
    err = capsys.readouterr().err
    assert err == f"error: --max-shard-size {size}: give a size like 5GB or 500MiB\n"
