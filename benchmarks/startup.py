"""Measure the CPU time of commands that compute nothing, and of importing transformers.

Such commands read config.json and the headers of weight files. They need neither torch nor
transformers, whose import would take most of their time.

    python benchmarks/startup.py [--runs 5] [--output DIR]

The checkpoint has the shape of SmolLM2-135M. Its weight file is sparse and is never read.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, machine, write_result

from hybridize.checkpoints.dtypes import SAFETENSORS_CODES
from hybridize.checkpoints.formats import config_from_json

SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
}
"""From the config.json of HuggingFaceTB/SmolLM2-135M."""


def write_sparse_checkpoint(directory: Path) -> None:
    """Write a checkpoint with the shape of SmolLM2-135M whose weights take no space on disk."""
    format_, spec = config_from_json(SMOLLM2_135M, directory)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(SMOLLM2_135M))
    header: dict[str, Any] = {}
    end = 0
    for entry in format_.tensor_map(spec):
        start, size = end, 2
        for length in entry.shape:
            size *= length
        end = start + size
        code = SAFETENSORS_CODES["bfloat16"]
        header[entry.disk] = {"dtype": code, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return its user plus system CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(directory: Path, runs: int) -> dict[str, float]:
    """Return the median CPU seconds of each command."""
    model, output = str(directory / "model"), str(directory / "out")
    write_sparse_checkpoint(directory / "model")
    hybridize = [sys.executable, "-m", "hybridize"]
    python = [sys.executable, "-c"]
    commands = {
        "hybridize inspect": [*hybridize, "inspect", model],
        "hybridize convert --dry-run": [*hybridize, "convert", model, "-o", output, "--dry-run"],
        "hybridize convert --keep 99 (an error)": [
            *hybridize, "convert", model, "-o", output, "--keep", "99",
        ],
        "python -c 'import transformers'": [*python, "import transformers"],
        "… 'from transformers import LlamaConfig'": [
            *python, "from transformers import LlamaConfig",
        ],
        "python -c 'import torch'": [*python, "import torch"],
        "python -c 'pass'": [*python, "pass"],
    }  # fmt: skip
    return {
        name: statistics.median(cpu_seconds(command) for _ in range(runs))
        for name, command in commands.items()
    }


def main() -> None:
    """Measure, print a table, and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command")
    arguments = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        seconds = measure(Path(directory), arguments.runs)
    for name, value in seconds.items():
        print(f"{name:45} {value:6.2f} s")
    result = {
        "machine": machine(torch.device("cpu")),
        "runs": arguments.runs,
        "cpu_seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    write_result(arguments.output, "startup", result)


if __name__ == "__main__":
    main()
