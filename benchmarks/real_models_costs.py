"""Measure time and memory of every command on a real model.

Each command runs as a process of its own with small settings, so that the whole table takes minutes
for a model of 135 million parameters:

    python benchmarks/real_models_costs.py --model DIR --work WORK --text valid.txt

The results of a command replace those of an earlier run; ``--only export,quantize`` measures some
commands again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, machine, write_result

from hybridize.console import console
from hybridize.units import size_in_words

NAME = "real_models-costs"

# Measures a command from a small process: the kernel counts the memory of the process that starts
# another one as its own, and this one has torch in memory.
_MEASURE = """
import json, os, sys, time
started = time.perf_counter()
with open(sys.argv[1], "wb") as log:
    streams = [(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)]
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=streams)
    _, status, usage = os.wait4(pid, 0)
print(json.dumps({
    "wall_s": time.perf_counter() - started,
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * 1024,
    "exit_code": os.waitstatus_to_exitcode(status),
}))
"""


@dataclass(frozen=True)
class CostSettings:
    """The sizes of the work that each command gets.

    Attributes:
        share: share of attention that the hybrid keeps.
        tokens: tokens of text for calibration, selection, pruning, quantization and perplexity.
        training_tokens: tokens of the distillation.
        prompt_len, gen_len: tokens of the benchmark.
        questions: questions per subject of the exam.
        candidates: architectures that pruning measures.
    """

    share: str = "25%"
    tokens: int = 2048
    training_tokens: int = 2048
    prompt_len: int = 2048
    gen_len: int = 16
    questions: int = 1
    candidates: int = 4


def commands(
    model: Path, work: Path, text: Path, mmlu: Path | None, settings: CostSettings
) -> dict[str, list[str]]:
    """Return the arguments of every command by name, in an order in which they can run.

    Args:
        model: the original.
        work: the directory of the outputs.
        text: a text file.
        mmlu: the directory of MMLU's CSV files; the exam is left out if None.
        settings: the sizes of the work.
    """
    source, hybrid, wide = str(model), str(work / "hybrid"), str(work / "wide")
    share, tokens = ["--attention", settings.share], str(settings.tokens)
    calibration = ["--calibration", str(text), "--calibration-tokens", tokens]
    unchecked = [*share, "--no-check"]  # the check costs the same with all options
    evenly = [*unchecked, "--select", "uniform", *calibration]

    def writing(command: str, of: str, name: str, *more: str) -> list[str]:
        return [command, of, "-o", str(work / name), *more, "--force"]

    found = {
        "inspect": ["inspect", source],
        "verify": ["verify", source],
        "convert": writing("convert", source, "plain", *share),
        "convert --no-check": writing("convert", source, "plain", *unchecked),
        "convert --calibration": writing("convert", source, "hybrid", *evenly),
        **{
            f"convert --select {select}": writing(
                "convert", source, select, *unchecked, "--select", select, *calibration
            )
            for select in ("sensitivity", "recall")
        },
        "generate": ["generate", hybrid, "--prompt", "Once upon a time", "--max-new-tokens", "32"],
        "bench": writing(
            "bench", hybrid, "bench.json", "--baseline", source, "--repeats", "1",
            "--prompt-len", str(settings.prompt_len), "--gen-len", str(settings.gen_len),
        ),
        "eval --perplexity": writing(
            "eval", hybrid, "perplexity.json", "--perplexity", str(work / "excerpt.txt"),
            "--max-length", "512",
        ),
        **{
            " ".join(["distill", *more]): writing(
                "distill", hybrid, "distilled", "--teacher", source, "--data", str(text),
                "--tokens", str(settings.training_tokens), "--validation-sequences", "4", *more,
            )
            for more in ([], ["--gradient-checkpointing"], ["--batch-size", "2"])
        },
        "prune": writing(
            "prune", hybrid, "pruned", "--params", "80%",
            "--candidates", str(settings.candidates), *calibration,
        ),
        "quantize": writing("quantize", hybrid, "fp8"),
        "quantize --keep-bf16 auto": writing(
            "quantize", hybrid, "fp8-auto", "--keep-bf16", "auto:8", *calibration
        ),
        "export --to onnx": writing("export", hybrid, "onnx", "--to", "onnx"),
        "convert for llama.cpp": writing(
            "convert", source, "wide", *evenly, "--ssm-expand", "2", "--no-ssm-bias"
        ),
        "export --to gguf": writing("export", wide, "wide.gguf", "--to", "gguf"),
        "report": writing("report", str(work / "bench.json"), "report.html"),
    }  # fmt: skip
    if mmlu is not None:
        found["eval --tasks mmlu_continuation"] = writing(
            "eval", hybrid, "mmlu.json", "--tasks", "mmlu_continuation", "--mmlu-dir", str(mmlu),
            "--limit", str(settings.questions), "--num-fewshot", "0",
        )  # fmt: skip
    return found


def measure(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a command of hybridize, and measure it.

    Args:
        arguments: its arguments.
        log: the file for everything that it prints.

    Returns:
        ``wall_s``, ``cpu_s`` (user and system), ``peak_bytes`` (resident memory) and ``exit_code``.
    """
    hybridize = [sys.executable, "-m", "hybridize", *arguments]
    measuring = [sys.executable, "-I", "-S", "-c", _MEASURE, str(log), *hybridize]
    done = subprocess.run(measuring, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure_costs(
    model: Path,
    work: Path,
    text: Path,
    *,
    mmlu: Path | None = None,
    settings: CostSettings | None = None,
    only: Sequence[str] = (),
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure time and memory of every command on a model.

    Args:
        model: the checkpoint directory of the original.
        work: a directory for the outputs of the commands, which is created.
        text: a text file to calibrate, train and measure on.
        mmlu: the directory of MMLU's CSV files; the exam is left out if None.
        settings: the sizes of the work.
        only: beginnings of the names of the commands to run; all if empty.
        output: the directory of the results; they are written after every command. None writes
            nothing.

    Returns:
        By model name: ``machine``, ``settings`` and ``commands``, a list of ``name``, ``arguments``
        and the figures that `measure` returns. A command that failed has ``error``, the last line
        that it printed.
    """
    settings = settings or CostSettings()
    work.mkdir(parents=True, exist_ok=True)
    excerpt = text.read_text("utf-8")[: 4 * settings.tokens]
    (work / "excerpt.txt").write_text(excerpt, "utf-8")
    results = _read(output)
    before = results.get(model.name, {})
    measured = {one["name"]: one for one in before.get("commands", ())}
    for name, arguments in commands(model, work, text, mmlu, settings).items():
        if only and not any(name.startswith(start) for start in only):
            continue
        console.message(f"{name} ...")
        log = work / "log.txt"
        one = {"name": name, "arguments": _shown(arguments), **measure(arguments, log)}
        if one["exit_code"]:
            lines = log.read_text("utf-8", errors="replace").strip().splitlines() or [""]
            one["error"] = lines[-1]
        measured[name] = one
        results[model.name] = {
            "machine": machine(torch.device("cpu")),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "settings": asdict(settings),
            "weight_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
            "commands": list(measured.values()),
        }
        if output is not None:
            write_result(output, NAME, results)
    return results


def table(results: Mapping[str, Any]) -> str:
    """Return the results of all models as tables in Markdown."""
    lines = []
    for model, result in results.items():
        weights = size_in_words(result["weight_bytes"])
        lines += [f"{model}, {weights} of weights:", "", "| command | time | CPU time | memory |"]
        lines += ["|---|---|---|---|"]
        for one in result["commands"]:
            failed = f" (failed: {one['error']})" if one["exit_code"] else ""
            lines.append(
                f"| `{one['name']}`{failed} | {one['wall_s']:,.1f} s | {one['cpu_s']:,.1f} s "
                f"| {size_in_words(one['peak_bytes'])} |"
            )
        lines.append("")
    return "\n".join(lines)


def _read(output: Path | None) -> dict[str, Any]:
    path = None if output is None else output / f"{NAME}.json"
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _shown(arguments: Sequence[str]) -> list[str]:
    """Return arguments without the directories of this machine."""
    return [Path(one).name if one.startswith("/") else one for one in arguments]


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__ or "")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint directory of the original")
    add("--work", type=Path, required=True, help="directory of the outputs of the commands")
    add("--text", type=Path, required=True, help="text file")
    add("--mmlu", type=Path, help="directory of MMLU's CSV files; default: not measured")
    add("--only", default="", help="beginnings of the names of commands, separated by commas")
    add("--delete", action="store_true", help="delete the outputs of the commands afterwards")
    for name, value in asdict(CostSettings()).items():
        add(f"--{name.replace('_', '-')}", type=type(value), default=value,
            help=f"see CostSettings; default: {value}".replace("%", "%%"))  # fmt: skip
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    results = measure_costs(
        options.model.resolve(),
        options.work.resolve(),
        options.text.resolve(),
        mmlu=options.mmlu and options.mmlu.resolve(),
        settings=_settings(options),
        only=[name for name in options.only.split(",") if name],
        output=options.output,
    )
    print(table(results))
    console.message(f"{time.perf_counter() - started:,.0f} s")
    if options.delete:
        shutil.rmtree(options.work)


def _settings(options: argparse.Namespace) -> CostSettings:
    return CostSettings(**{name: getattr(options, name) for name in asdict(CostSettings())})


if __name__ == "__main__":
    main()
