"""Print a SHA-256 for the tensors that each command writes for the bundled checkpoint.

    python -m tools.output_hashes DIR > after.txt

Run it before and after a change that must not influence any number, on the same machine, and
compare: the hashes must be equal. It takes about five minutes on one thread. DIR keeps the outputs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from hybridize.demo import CHECKPOINT, EXAM

_MODEL = str(CHECKPOINT)
_DISTILL = ["--seq-len", "128", "--batch-size", "8", "--teacher", _MODEL]
_KL = [*_DISTILL, "--stages", "kl", "--tokens", "10240"]

# Name of the output: the command. ``TEXT`` is a text file, ``@name`` an earlier output.
_RUNS: dict[str, list[str]] = {
    "uniform": ["convert", _MODEL, "--attention", "25%"],
    "random": ["convert", _MODEL, "--attention", "25%", "--init", "random", "--seed", "7"],
    "kv-groups": [
        "convert", _MODEL, "--attention", "2", "--ssm-groups", "kv", "--ssm-expand", "2",
        "--d-state", "8",
    ],
    "calibrated": ["convert", _MODEL, "--attention", "0%", "--calibration", "TEXT"],
    "calibrated-no-bias": [
        "convert", _MODEL, "--attention", "25%", "--calibration", "teacher", "--no-ssm-bias",
        "--calibration-tokens", "4096",
    ],
    "sensitivity": [
        "convert", _MODEL, "--attention", "25%", "--select", "sensitivity",
        "--calibration", "TEXT", "--calibration-tokens", "4096",
    ],
    "from-hybrid": ["convert", _MODEL, "--attention", "25%", "--init", "@calibrated"],
    "align": [
        "distill", "@calibrated", "--data", "TEXT", "--stages", "align", "--tokens", "20480",
        *_DISTILL,
    ],
    "kl": [
        "distill", "@sensitivity", "--data", "TEXT", "--stages", "kl", "--tokens", "20480",
        "--label-weight", "0.2", *_DISTILL,
    ],
    "hidden-all": [
        "distill", "@uniform", "--data", "teacher", "--stages", "hidden,kl", "--tokens", "10240",
        "--hidden-tokens", "10240", "--train", "all", "--tbptt-length", "64", *_DISTILL,
    ],
    "cached-teacher": [
        "distill", "@sensitivity", "--data", "TEXT", "--cache-teacher", "16",
        "--gradient-checkpointing", *_KL,
    ],
    "fp8-training": ["distill", "@sensitivity", "--data", "TEXT", "--fp8", "fp8", *_KL],
    "pruned": ["prune", "@kl", "--params", "70%", "--calibration", "TEXT", "--candidates", "6"],
    "pruned-per-block": [
        "prune", _MODEL, "--params", "60%", "--calibration", "TEXT", "--candidates", "4",
        "--widths", "per-block",
    ],
    "pruned-finalists": [
        "prune", _MODEL, "--memory", "10MiB@2048", "--calibration", "TEXT", "--candidates", "4",
        "--distill-top", "2", "--tokens", "8192",
    ],
    "fp8": ["quantize", "@kl"],
    "fp8-tensor": ["quantize", "@kl", "--scheme", "fp8-tensor", "--calibration", "TEXT"],
    "fp8-block": [
        "quantize", "@kl", "--scheme", "fp8-block", "--keep-bf16", "auto:2",
        "--calibration", "TEXT",
    ],
}  # fmt: skip


def hash_tensors(directory: Path) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes of all tensors of a checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            first, last = entry["data_offsets"]
            digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
            digest.update(data[start + first : start + last])
    return digest.hexdigest()


def main(folder: Path, only: list[str]) -> None:
    """Run the commands one after the other, and print a line for each."""
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("\n\n".join(path.read_text("utf-8") for path in sorted(EXAM.rglob("*.csv"))))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for name, words in _RUNS.items():
        if only and name not in only:
            continue
        command = [str(folder / w[1:]) if w.startswith("@") else w for w in words]
        command = [str(text) if word == "TEXT" else word for word in command]
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "hybridize", *command, "-o", str(folder / name), "--quiet"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        print(f"{name:20} {hash_tensors(folder / name)}", flush=True)
        print(f"{name:20} {time.perf_counter() - started:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hash what every command writes.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new directory for the outputs")
    parser.add_argument("only", nargs="*", metavar="NAME", help="run only these; all if none")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.only)
